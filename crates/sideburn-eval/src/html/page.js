"use strict";
// Sorts and searches the table of dialogues. All else is there without it.
{
  const id = (name) => document.getElementById(name);
  const [table, search, sort, down, open, found] = ["rows", "search", "sort", "down", "open", "found"].map(id);
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  table.style.setProperty("--columns", heads.length);

  // The numbers of each system's cell in a row: NaN where there is none.
  let scores;
  const value = (row, order) => {
    if (order === "o") return row;
    if (order === "w" || order === "s") return Number(rows[row].dataset[order]);
    scores ??= rows.map((row) =>
      [...row.cells].slice(2).map((cell) => cell.dataset.v.split(" ").map((text) => (text ? Number(text) : NaN))),
    );
    const [first, second] = order.split("-").map((place) => {
      const [system, score] = place.split(".").map(Number);
      return scores[row][system][score];
    });
    return second === undefined ? first : first - second;
  };

  const arrange = () => {
    const order = sort.value;
    const sign = down.checked ? -1 : 1;
    const keyed = rows.map((element, row) => ({ element, row, key: value(row, order) }));
    keyed.sort((a, b) => Number.isNaN(a.key) - Number.isNaN(b.key) || sign * (a.key - b.key) || a.row - b.row);
    body.append(...keyed.map(({ element }) => element));
    for (const head of heads) {
      if (head.dataset.sort !== order) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", down.checked ? "descending" : "ascending");
    }
  };

  let texts;
  const filter = () => {
    texts ??= rows.map((row) => row.textContent.toLowerCase());
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, at) => {
      row.hidden = !words.every((word) => texts[at].includes(word));
      count += !row.hidden;
    });
    const all = rows.length.toLocaleString("en");
    const noun = rows.length === 1 ? "dialogue" : "dialogues";
    found.textContent = words.length ? `${count.toLocaleString("en")} of ${all} ${noun}` : `${all} ${noun}`;
  };

  for (const head of heads.filter((head) => head.dataset.sort)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.dataset.sort;
      down.checked = sort.value === order ? !down.checked : order !== "o";
      sort.value = order;
      arrange();
    });
  }
  sort.addEventListener("change", arrange);
  down.addEventListener("change", arrange);
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 100);
  });
  open.addEventListener("click", () => {
    const all = [...body.querySelectorAll("details")];
    const opens = !all.every((details) => details.open);
    for (const details of all) details.open = opens;
    open.textContent = opens ? "Close all dialogues" : "Open all dialogues";
  });
  id("tools").hidden = false;
  // What a browser remembers of a page that is loaded again.
  if (search.value) filter();
  if (sort.value !== "o" || down.checked) arrange();
}
