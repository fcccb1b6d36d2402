// Tables are sorted by a click on a heading; commands get a button that copies them.
// Cells have their number in data-sort if their text is not a plain one.
function valueOf(cell) {
  const text = cell.dataset.sort || cell.textContent.trim();
  return text === "" ? NaN : Number(text);
}

// Numbers come before texts, and cells without a value last in both directions.
function compare(one, other, up) {
  const [s, t] = [one, other].map((cell) => cell.textContent.trim());
  if (!s || !t) return !s - !t;
  const [a, b] = [valueOf(one), valueOf(other)];
  if (isNaN(a) !== isNaN(b)) return isNaN(a) - isNaN(b);
  const order = isNaN(a) ? s.localeCompare(t, undefined, { numeric: true }) : a - b;
  return up ? order : -order;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headings.forEach((heading, column) => {
    const sort = () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => compare(a.cells[column], b.cells[column], up);
      const rows = [...table.tBodies[0].rows].sort(order);
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
