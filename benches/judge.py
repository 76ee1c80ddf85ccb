"""How long `sideburn judge` takes for 1,000 dialogues and 4 scores each, against a server on this machine that takes 50 ms.

    cargo build --release --workspace && python benches/judge.py target/release/sideburn
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DIALOGUES, SECONDS = 1000, 0.05
calls = 0


async def serve(reader, writer):
    global calls
    verdict = json.dumps({"reason": "All that matters is there.", "score": 4})
    message = {"role": "assistant", "content": verdict}
    usage = {"prompt_tokens": 500, "completion_tokens": 20}
    body = json.dumps({"choices": [{"message": message}], "usage": usage}).encode()
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            calls += 1
            await asyncio.sleep(SECONDS)
            writer.write(reply)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0), loop).result()
port = server.sockets[0].getsockname()[1]
environment = {**os.environ, "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1", "OPENAI_MODEL": "judge"}
with tempfile.TemporaryDirectory() as directory:
    data, texts, output = (Path(directory, name) for name in ("data.jsonl", "lora.txt", "judged.jsonl"))
    turns = "\n".join(f"#Person{1 + turn % 2}#: What do you think of turn {turn}?" for turn in range(12))
    rows = [{"id": f"test_{n}", "dialogue": f"{turns}\n{n}", "summary": "s"} for n in range(DIALOGUES)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts.write_text("".join(f"They talk about {n}.\n" for n in range(DIALOGUES)))
    command = [sys.argv[1], "judge", "--data", data, "--predictions", texts, "--output", output, "--json"]
    for run in ("first", "second"):
        calls, began = 0, time.monotonic()
        found = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
        seconds = time.monotonic() - began
        print(f"{run} run: {seconds:.2f} s, {calls} calls, {found['cached']} scores known before")
