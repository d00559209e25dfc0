"use strict";
// The values of a chart under the pointer.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const text = (value, percent) => {
    if (value === null) return "–";
    const shown = percent ? 100 * value : value;
    const size = Math.abs(shown);
    const plain = size === 0 || (size >= 1e-3 && size < 1e6);
    const digits = plain ? String(Number(shown.toPrecision(4))) : shown.toExponential(2);
    return digits.replace("-", "−") + (percent ? "\u202f%" : "");
  };

  const fill = (readings, place) => {
    const step = readings.steps[place];
    const title = document.createElement("b");
    title.textContent = `step ${Math.round(step)}`;
    const rows = readings.lines.filter(([, , values]) => values[place] !== null).map(([name, colour, values]) => {
      const row = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.style.setProperty("--colour", `var(--${colour})`);
      row.append(swatch, `${name} ${text(values[place], readings.percent)}`);
      return row;
    });
    tip.replaceChildren(title, ...rows);
  };

  const watch = (chart) => {
    const readings = JSON.parse(chart.dataset.readings);
    const [left, right, from, to] = readings.axis;
    if (!readings.steps.length) return;
    const xOf = (step) => left + ((step - from) / (to - from)) * (right - left);
    const guide = document.createElementNS(chart.namespaceURI, "path");
    guide.setAttribute("class", "guide");

    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const scale = box.width / chart.viewBox.baseVal.width;
      const wanted = (event.clientX - box.left) / scale;
      let place = 0;
      readings.steps.forEach((step, i) => {
        if (Math.abs(xOf(step) - wanted) < Math.abs(xOf(readings.steps[place]) - wanted)) place = i;
      });
      const x = xOf(readings.steps[place]);
      guide.setAttribute("d", `M ${x} 10 V ${chart.viewBox.baseVal.height - 34}`);
      chart.append(guide);
      fill(readings, place);
      tip.hidden = false;
      // Beside the line, on the side that has room.
      const at = box.left + x * scale;
      const side = at + tip.offsetWidth + 24 > document.documentElement.clientWidth ? -tip.offsetWidth - 10 : 10;
      tip.style.transform = `translate(${Math.max(0, at + side) + scrollX}px, ${box.top + scrollY + 8}px)`;
    });
    chart.addEventListener("pointerleave", () => {
      guide.remove();
      tip.hidden = true;
    });
  };

  for (const chart of document.querySelectorAll("svg[data-readings]")) watch(chart);
})();
