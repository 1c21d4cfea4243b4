// What the page does beyond being read; without scripts it is complete all the same.

// A click on the head of a column sorts its table, a second one the other way round.
const number = (text) => parseFloat(text.replace(/,/g, "").replace(/−/g, "-").replace(/^[^0-9-]+/, ""));
for (const head of document.querySelectorAll("thead th")) {
  head.tabIndex = 0;
  head.title = "sort";
  const sort = () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex, down = head.ariaSort === "ascending";
    const key = (row) => row.cells[column].textContent, numbers = [...body.rows].some((row) => !isNaN(number(key(row))));
    const compare = (a, b) => numbers ? (number(key(a)) || 0) - (number(key(b)) || 0) : key(a).localeCompare(key(b));
    for (const other of head.parentNode.cells) other.ariaSort = null;
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort((a, b) => down ? compare(b, a) : compare(a, b)));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
}

// A click on a figure opens it large, in a window from which it can be saved as an SVG file with its colours.
const drawing = (svg) => {
  const copy = svg.cloneNode(true), style = getComputedStyle(document.documentElement);
  copy.setAttribute("style", `background:${style.getPropertyValue("--paper")};font-family:sans-serif`);
  const text = new XMLSerializer().serializeToString(copy);
  const named = text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  return new Blob([named.replace(/currentColor/g, style.getPropertyValue("--ink").trim())], { type: "image/svg+xml" });
};
for (const svg of document.querySelectorAll("figure svg")) {
  svg.style.cursor = "zoom-in";
  svg.addEventListener("click", () => window.open(URL.createObjectURL(drawing(svg))));
}

// Paper has no folds.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((fold) => (fold.open = true)));
