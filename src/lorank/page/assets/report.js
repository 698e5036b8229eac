"use strict";
(() => {
  const maps = JSON.parse(document.getElementById("maps").textContent);

  const depth = (scale, value) => {
    const size = Math.abs(value);
    return scale.log ? Math.log1p(size / scale.unit) / Math.log1p(scale.most / scale.unit) : size / scale.most;
  };
  const number = (map, value) => {
    if (value === 0) return "·";
    const text = value.toFixed(map.decimals || (Number.isInteger(value) ? 0 : 1));
    return Number(text) === 0 ? text.replace("-", "") : text;
  };
  const spoken = (map, n, total) => {
    const mean = total / map.counts[n];
    const experts = map.counts[n] > 1 ? ` (${map.counts[n]} experts, mean)` : "";
    const parameters = mean ? `, ${Math.round(mean * map.costs[n]).toLocaleString("en-US")} parameters` : "";
    return `${map.where[n]}${experts}: rank ${mean ? number(map, mean) : 0}${parameters}${map.told[n]}`;
  };

  for (const figure of document.querySelectorAll("figure.map")) {
    const map = maps[figure.id];
    const cells = [...figure.querySelectorAll(".cell")];
    const told = document.getElementById(`${figure.id}-told`);
    const place = new Map(cells.map((cell, n) => [`${map.rows[n]},${map.columns[n]}`, n]));
    const tell = (cell) => { told.textContent = cell.getAttribute("aria-label"); };

    for (const cell of cells) {
      cell.addEventListener("mouseenter", () => tell(cell));
      cell.addEventListener("click", () => cell.focus());
      cell.addEventListener("focus", () => {
        for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
        tell(cell);
      });
    }
    figure.addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const cell = event.target.closest(".cell");
      if (!cell || !(event.key in moves)) return;
      event.preventDefault();
      const [down, right] = moves[event.key];
      let [row, column] = [map.rows[cell.dataset.n], map.columns[cell.dataset.n]];
      const [lastRow, lastColumn] = [Math.max(...map.rows), Math.max(...map.columns)];
      do {  // over places that hold no module
        row += down;
        column += right;
      } while (row >= 0 && column >= 0 && row <= lastRow && column <= lastColumn && !place.has(`${row},${column}`));
      const next = place.get(`${row},${column}`);
      if (next !== undefined) cells[next].focus();
    });

    const slider = figure.querySelector("input[type=range]");
    if (!slider) continue;
    const label = document.getElementById(`${figure.id}-label`);
    const sums = (kind) => [...figure.querySelectorAll(`.sum[data-${kind}]`)];
    const [rowSums, columnSums] = [sums("row"), sums("column")];
    slider.addEventListener("input", () => {
      const state = map.states[slider.value];
      const [byRow, byColumn] = [rowSums.map(() => 0), columnSums.map(() => 0)];
      state.forEach((total, n) => {
        const [cell, mean] = [cells[n], total / map.counts[n]];
        const t = depth(map.scale, mean);
        cell.style.setProperty("--t", t.toFixed(3));
        cell.classList.toggle("zero", mean === 0);
        cell.querySelector("text").textContent = number(map, mean);
        cell.setAttribute("aria-label", spoken(map, n, total));
        byRow[map.rows[n]] += total;
        byColumn[map.columns[n]] += total;
      });
      rowSums.forEach((text, n) => { text.textContent = number(map, byRow[n]); });
      columnSums.forEach((text, n) => { text.textContent = number(map, byColumn[n]); });
      label.textContent = map.labels[slider.value];
      slider.setAttribute("aria-valuetext", map.labels[slider.value]);
      const focused = cells.find((cell) => cell === document.activeElement);
      if (focused) tell(focused);
    });
  }
})();
