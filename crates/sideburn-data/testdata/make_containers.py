"""Writes containers/: Parquet files as the hub serves data sets, and 7z archives, good and bad. All texts are made up here.

    pip install pyarrow==26.0.1 py7zr==1.1.4
    python make_containers.py
"""
import io, json, struct, zlib
from pathlib import Path

import py7zr
import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(__file__).parent / "containers"
ROWS = [
    {"id": f"test_{i}_{n}", "dialogue": f"#Person1#: Hello {i}.\r\n#Person2#: Ünd you?", "summary": f"Greeting {i}, {n}.", "topic": "hi"}
    for i in range(3) for n in (1, 2, 3)
]
pq.write_table(pa.Table.from_pylist(ROWS[:6]), OUT / "test-00000-of-00002.parquet", compression="snappy", row_group_size=4)
pq.write_table(pa.Table.from_pylist(ROWS[6:]), OUT / "test-00001-of-00002.parquet", compression="snappy")

# References as a list, ids as numbers, a null topic, a column of another kind.
lists = [{"index": 7, "text": "A: Tea?", "gists": ["Tea.", "A asks."], "topic": None, "turns": [{"who": "A"}]},
         {"index": 8, "text": "B: No.", "gists": ["No."], "topic": "no", "turns": []}]
pq.write_table(pa.Table.from_pylist(lists), OUT / "lists.parquet", compression="none")
pq.write_table(pa.Table.from_pylist([{"id": "1", "dialogue": "A: Hi.", "summary": 3}]), OUT / "numbers.parquet")
pq.write_table(pa.Table.from_pylist(ROWS), OUT / "zstd.parquet", compression="zstd")
# 200,000 times one text of 1,000 characters.
same = pa.array(["x" * 1000]).dictionary_encode().dictionary
column = pa.DictionaryArray.from_arrays(pa.array([0] * 200_000, pa.int32()), same)
pq.write_table(pa.table({"dialogue": column, "summary": column}), OUT / "bomb.parquet", compression="snappy")


def archive(name, files, plain_header=False):
    with py7zr.SevenZipFile(OUT / name, "w") as out:
        out.set_encoded_header_mode(not plain_header)
        for member, data in files.items():
            out.writestr(data, member)


chats = [{"id": "1", "summary": "Ann bakes.", "dialogue": "Ann: I bake.\r\nBob: Nice!"},
         {"id": "13828807", "summary": "", "dialogue": ""}]
archive("corpus.7z", {"train.json": json.dumps(chats), "val.json": json.dumps(chats[:1]), "test.json": json.dumps(chats[:1])})
archive("bomb.7z", {"train.json": " " * (10 << 20)})
for name, good, bad in [("parent.7z", "xx/train.json", "../train.json"), ("absolute.7z", "x/train.json", "//train.json")]:
    archive(name, {good: json.dumps(chats)}, plain_header=True)
    data = bytearray((OUT / name).read_bytes())
    at = data.rindex(good.encode("utf-16-le"))
    data[at:at + 2 * len(bad)] = bad.encode("utf-16-le")
    start, size = struct.unpack("<QQ", data[12:28])
    data[28:32] = struct.pack("<I", zlib.crc32(data[32 + start:32 + start + size]))
    data[8:12] = struct.pack("<I", zlib.crc32(data[12:32]))
    (OUT / name).write_bytes(data)
