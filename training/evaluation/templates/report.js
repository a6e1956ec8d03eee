
// A click on a heading of a sortable table sorts it by that column, and once more the other way.
for (const head of document.querySelectorAll("table.sortable th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentElement;
    const body = cell.closest("table").tBodies[0];
    const column = cell.cellIndex;
    const descending = cell.getAttribute("aria-sort") === "ascending";
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      const order = "text" in cell.dataset ? value(a).localeCompare(value(b)) : value(a) - value(b);
      return descending ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
    for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
  });
}
