// Tables: sort by a column, filter lines, copy as CSV, show the rows behind each number.
"use strict";

// "1,431 (1,209 to 1,492)" sorts by 1431; a cell without a number sorts last.
function keyOf(cell) {
  const words = cell.dataset.text ?? cell.textContent.trim();
  const found = words.replaceAll(",", "").match(/^(?:N = |\[)?(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)/);
  return { words, number: found ? Number(found[1]) : NaN };
}

function compareKeys(a, b, sign) {
  const [left, right] = [Number.isNaN(a.number), Number.isNaN(b.number)];
  if (left && right) return sign * a.words.localeCompare(b.words, "en");
  if (left !== right) return left ? 1 : -1;
  return sign * (a.number - b.number);
}

function sortBy(table, index, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const lines = [...body.rows].map((row) => [keyOf(row.cells[index]), row]);
  lines.sort(([a], [b]) => compareKeys(a, b, descending ? -1 : 1));
  body.append(...lines.map(([, row]) => row));
}

function textOf(cell) {
  return (cell.dataset.text ?? cell.textContent).trim();
}

function csv(table) {
  const lines = [...table.rows].filter((row) => !row.hidden);
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return lines.map((row) => [...row.cells].map(textOf).map(quoted).join(",")).join("\n");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // A file opened from disk may have no clipboard but the old one.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

function toggleSources(table, button) {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  for (const cell of table.querySelectorAll("td[data-rows]")) {
    cell.querySelector(".sources")?.remove();
    if (!on) continue;
    const links = document.createElement("span");
    links.className = "sources";
    const rows = cell.dataset.rows.split(" ");
    for (const row of rows.slice(0, 3)) links.append(linkTo(row, rows.length > 3 ? rows : [row]));
    if (rows.length > 3) links.append(` +${rows.length - 3}`);
    cell.append(links);
  }
}

function linkTo(row, rows) {
  const link = document.createElement("a");
  link.href = `#${row}`;
  link.dataset.rows = rows.join(" ");
  link.textContent = row.replace(/^r\d+-/, "");
  link.setAttribute("aria-label", `row ${link.textContent}`);
  return link;
}

function pointAt(rows) {
  for (const row of document.querySelectorAll("tr.pointed")) row.classList.remove("pointed");
  const found = rows.map((row) => document.getElementById(row)).filter(Boolean);
  for (const row of found) {
    row.hidden = false;
    row.closest("details").open = true;
    row.classList.add("pointed");
  }
  found[0]?.scrollIntoView({ block: "center" });
}

for (const holder of document.querySelectorAll(".sortable")) {
  const table = holder.querySelector("table");
  const tools = holder.querySelector(".tools");
  tools.hidden = false;
  [...table.tHead.rows[0].cells].forEach((header, index) => {
    const cells = [...table.tBodies[0].rows].map((row) => row.cells[index]);
    const wordy = cells.some((cell) => cell.tagName === "TD" && textOf(cell).length > 40);
    if (wordy) for (const cell of [header, ...cells]) cell.classList.add("words");
    for (const cell of cells) if (cell.dataset.rows) cell.dataset.text = cell.textContent.trim();
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.dataset.text = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => sortBy(table, index, header));
  });
  const said = tools.querySelector(".said");
  tools.querySelector("input")?.addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    said.textContent = wanted ? `${shown} of ${rows.length} lines` : "";
  });
  tools.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.do === "copy") {
      said.textContent = (await copy(csv(table))) ? "Copied" : "The browser refused to copy";
    }
    if (button?.dataset.do === "sources") toggleSources(table, button);
  });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-rows]");
  if (!link) return;
  event.preventDefault();
  history.pushState(null, "", link.getAttribute("href"));
  pointAt(link.dataset.rows.split(" "));
});

const openAll = document.querySelector("[data-do=open-all]");
if (openAll) {
  openAll.hidden = false;
  openAll.addEventListener("click", () => {
    const blocks = [...openAll.closest("section").querySelectorAll("details")];
    const open = blocks.some((block) => !block.open);
    for (const block of blocks) block.open = open;
    openAll.textContent = open ? "Close all" : "Open all";
  });
}
if (location.hash.startsWith("#r")) pointAt([location.hash.slice(1)]);
