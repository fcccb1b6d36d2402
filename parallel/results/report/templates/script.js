// Tables are sorted by a click on a heading; commands get a button that copies them.
const UNITS = {k: 1e3, M: 1e6, G: 1e9, T: 1e12};

function valueOf(cell) {
  const found = cell.textContent.replace(/[,\s]/g, "").match(/^[^\d+\-.]*([+-]?[\d.]+)([kMGT]?)/);
  return found ? parseFloat(found[1]) * (UNITS[found[2]] || 1) : NaN;
}

function compare(one, other) {
  const [a, b] = [valueOf(one), valueOf(other)];
  if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
  return a - b;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headings.forEach((heading, column) => {
    const sort = () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const word = heading.classList.contains("word");
      const order = (a, b) => word
        ? a.cells[column].textContent.localeCompare(b.cells[column].textContent)
        : compare(a.cells[column], b.cells[column]);
      const rows = [...table.tBodies[0].rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
      table.tBodies[0].append(...rows);
    };
    heading.tabIndex = 0;
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}

for (const command of document.querySelectorAll("pre.command")) {
  const button = document.createElement("button");
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  command.parentNode.insertBefore(button, command);
}
