"use strict";
// The tables of responses: filter, search, sort, unfold. Texts of the run reach the page as textContent only.
(() => {
  const PAGE_ROWS = 25;
  const EXCERPT = 240;
  const TAGS = /(<\/?(?:think|answer)>)/;

  // ── the data: rows of embed.py as records ──

  const judged = ([response, right, score]) => ({ response, right, score });

  const readers = {
    rollouts: (data) =>
      data.rows.map(([group, response, action, reward, advantage, tokens, truncated, raw, norm, weight]) => {
        const [step, number, datasource, prompt, reference] = data.groups[group];
        return {
          step, number, datasource, prompt, reference, response, action,
          reward, advantage, tokens, truncated, raw, norm, weight,
        };
      }),
    evaluation: (data) =>
      data.rows.map(([datasource, prompt, reference, response, right, score, before]) => ({
        datasource, prompt, reference, response, right, score,
        before: before && { step: before[0], ...judged(before.slice(1)) },
      })),
  };

  // "raw.2" is the third component's raw value.
  const valueOf = (record, key) => {
    const [name, index] = key.split(".");
    const value = index === undefined ? record[name] : record[name][Number(index)];
    return value === "fault" ? -Infinity : value;
  };

  const missing = (value) => value === null || value === undefined;

  // What is missing stands last, whichever way the rest is sorted; equal values keep the order of the data.
  const sorted = (records, key, direction) => {
    const keyed = records.map((record, place) => ({ record, place, value: valueOf(record, key) }));
    keyed.sort((a, b) => {
      if (missing(a.value) || missing(b.value)) return missing(a.value) - missing(b.value) || a.place - b.place;
      if (a.value === b.value) return a.place - b.place;
      return (a.value < b.value ? -1 : 1) * direction;
    });
    return keyed.map((item) => item.record);
  };

  const verdicts = {
    right: (record) => record.right === true,
    wrong: (record) => record.right === false,
    gained: (record) => record.right === true && record.before?.right === false,
    lost: (record) => record.right === false && record.before?.right === true,
    none: (record) => record.right === null,
  };

  // ── texts ──

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const number = (value) => {
    if (missing(value)) return "–";
    if (value === "fault" || value === -Infinity) return "−∞";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const [mantissa, power] = size.toExponential(2).split("e");
    const plain = size >= 1e-3 && Number(power) < 6;
    const text = plain ? size.toFixed(Math.max(0, 2 - Number(power))) : `${mantissa}e${Number(power)}`;
    return (value < 0 ? "−" : "") + text;
  };
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const verdict = (right) => (right === true ? "right" : right === false ? "wrong" : "no verdict");
  const tone = (value) => (value > 0 ? "good" : value < 0 ? "bad" : "");

  const fullText = (text, label) => {
    const box = make("div", { class: "text", tabindex: "0", role: "region", "aria-label": label });
    for (const piece of text.split(TAGS)) box.append(TAGS.test(piece) ? make("code", {}, piece) : piece);
    return box;
  };

  const asked = (pairs) => {
    const list = make("dl", { class: "asked" });
    for (const [term, text] of pairs) {
      if (text) list.append(make("dt", {}, term), make("dd", {}, fullText(text, term)));
    }
    return list;
  };

  // ── bars ──

  const coloured = (element, colour, share) => {
    element.style.setProperty("--colour", `var(--${colour})`);
    if (share !== undefined) element.style.setProperty("--share", `${100 * Math.min(1, Math.max(0, share || 0))}%`);
    return element;
  };

  // Normalised rewards upwards and weights downwards, a column a component.
  const miniature = (record, components) => {
    const spoken = components.map(([name], i) => `${name} ${number(record.norm[i])} × ${number(record.weight[i])}`);
    const chart = make("span", { class: "mini", role: "img", "aria-label": spoken.join(", "), title: spoken.join("\n") });
    components.forEach(([, colour], i) => {
      chart.append(coloured(make("i"), colour, record.norm[i]), coloured(make("b"), colour, record.weight[i]));
    });
    return chart;
  };

  const bar = (value, colour) =>
    make("span", { class: "bar" }, make("span", { class: "num" }, number(value)), coloured(make("i"), colour, value));

  const barTable = (record, components) => {
    const head = make("tr");
    for (const title of ["component", "raw", "normalised", "weight"]) {
      head.append(make("th", { scope: "col", class: title === "raw" ? "num" : "" }, title));
    }
    const body = make("tbody");
    components.forEach(([name, colour], i) => {
      const title = make("th", { scope: "row" }, name);
      if (i === record.action) {
        title.append("\u00a0", make("abbr", { title: "the emphasis that the Conductor drew for this response" }, "*"));
      }
      body.append(
        make("tr", {}, title, make("td", { class: "num" }, number(record.raw[i])),
          make("td", {}, bar(record.norm[i], colour)), make("td", {}, bar(record.weight[i], colour))),
      );
    });
    return make("table", { class: "bars" }, make("thead", {}, head), body);
  };

  // ── cells and details ──

  const excerpt = (record) => {
    const text = record.response.replace(TAGS_ALL, " ").replace(/\s+/g, " ").trim();
    return text.length > EXCERPT ? `${text.slice(0, EXCERPT)} …` : text || "(empty)";
  };
  const TAGS_ALL = new RegExp(TAGS, "g");

  const cells = {
    datasource: (record) => make("span", { class: "name" }, record.datasource),
    response: (record) => make("span", { class: "excerpt" }, excerpt(record)),
    tokens: (record) => {
      const cut = record.truncated ? [make("abbr", { title: "truncated", class: "bad" }, " cut")] : [];
      return make("span", {}, String(record.tokens), ...cut);
    },
    reward: (record) => number(record.reward),
    advantage: (record) => make("span", { class: tone(record.advantage) }, signed(record.advantage)),
    bars: (record, data) => miniature(record, data.components),
    right: (record) => make("span", { class: record.right ? "good" : record.right === false ? "bad" : "" }, verdict(record.right)),
    score: (record) => number(record.score),
    before: (record) => (record.before ? verdict(record.before.right) : "–"),
    sorted: (record, data, key) => number(valueOf(record, key)),
  };

  const details = {
    rollouts: (record, data) => {
      const facts = [
        record.datasource, `step ${record.step}, group ${record.number}`,
        `${record.tokens} tokens${record.truncated ? ", truncated" : ""}`,
        `reward ${number(record.reward)}`, `advantage ${signed(record.advantage)}`,
      ];
      return make("div", {},
        asked([["prompt", record.prompt], ["reference", record.reference]]),
        make("div", { class: "response" }, fullText(record.response, "Response"),
          make("div", {}, make("p", { class: "facts" }, ...facts.map((fact) => make("span", {}, fact))), barTable(record, data.components))));
    },
    evaluation: (record) => {
      const before = record.before && [[`at step ${record.before.step}: ${verdict(record.before.right)}`, record.before.response]];
      return asked([
        ["prompt", record.prompt], ["reference", record.reference],
        [`response: ${verdict(record.right)}`, record.response], ...(before || []),
      ]);
    },
  };

  // ── one table ──

  const start = (root) => {
    const kind = root.dataset.kind;
    const data = JSON.parse(document.getElementById(root.dataset.source).textContent);
    const records = readers[kind](data);
    for (const record of records) {
      const texts = [record.prompt, record.reference, record.response, record.before?.response];
      record.haystack = texts.filter(Boolean).join("\n").toLowerCase();
    }
    const control = (name) => root.querySelector(`[data-control="${name}"]`);
    const [body, count, more, sortBy, turn] = ["body", "count", "more", "sort", "direction"].map(control);
    const headers = [...root.querySelectorAll("th[data-cell]")];
    const initial = { key: sortBy.value, direction: Number(root.dataset.direction) };
    let { key, direction } = initial;
    let found = records;
    let shown = 0;

    const filtered = () => {
      const words = control("search").value.trim().toLowerCase();
      const equal = ["datasource", "step"].filter((name) => control(name)?.value);
      const accepts = verdicts[control("verdict")?.value];
      return records.filter(
        (record) =>
          equal.every((name) => String(record[name]) === control(name).value) &&
          (!accepts || accepts(record)) && (!words || record.haystack.includes(words)),
      );
    };

    const row = (record) => {
      const line = make("tr");
      const button = make("button", { type: "button", class: "toggle", "aria-expanded": "false" });
      const step = record.step === undefined ? "" : String(record.step);
      button.append(make("span", { class: "arrow", "aria-hidden": "true" }), step);
      button.setAttribute("aria-label", step ? `step ${step}, details` : "details");
      const toggle = () => {
        const open = button.getAttribute("aria-expanded") === "true";
        button.setAttribute("aria-expanded", String(!open));
        if (open) line.nextElementSibling.remove();
        else line.after(make("tr", { class: "detail" }, make("td", { colspan: String(headers.length) }, details[kind](record, data))));
      };
      button.addEventListener("click", toggle);
      line.addEventListener("click", (event) => {
        if (!event.target.closest("button") && !String(getSelection())) toggle();
      });
      for (const header of headers) {
        const cell = make("td", { class: header.className });
        const name = header.dataset.cell;
        cell.hidden = header.hidden;
        cell.append(name === "toggle" ? button : cells[name](record, data, key));
        line.append(cell);
      }
      return line;
    };

    const grow = () => {
      const next = found.slice(shown, shown + PAGE_ROWS);
      body.append(...next.map(row));
      shown += next.length;
      more.hidden = shown >= found.length;
      more.textContent = `Show ${Math.min(PAGE_ROWS, found.length - shown)} more`;
      const all = found.length === records.length ? "" : ` of ${records.length.toLocaleString("en")}`;
      count.textContent = `${found.length.toLocaleString("en")}${all} responses, ${shown.toLocaleString("en")} shown`;
    };

    const draw = () => {
      const option = [...sortBy.options].find((item) => item.value === key);
      sortBy.value = key;
      turn.textContent = direction > 0 ? "ascending ↑" : "descending ↓";
      body.parentElement.classList.toggle("by-value", key.includes("."));
      for (const header of headers) {
        if (header.dataset.cell === "sorted") {
          header.hidden = !key.includes(".");
          header.textContent = header.hidden ? "" : option.textContent;
        }
        if (header.dataset.key === key) header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else header.removeAttribute("aria-sort");
      }
      found = sorted(filtered(), key, direction);
      shown = 0;
      body.replaceChildren();
      grow();
    };

    // A first click shows the largest numbers, or the first letters; a second one turns the order round.
    const sortOn = (wanted, flip) => {
      if (wanted === key && flip) direction = -direction;
      else if (wanted !== key) direction = wanted === "datasource" ? 1 : -1;
      key = wanted;
      draw();
    };

    for (const header of headers) {
      header.querySelector("button")?.addEventListener("click", () => sortOn(header.dataset.key, true));
    }
    sortBy.addEventListener("change", () => sortOn(sortBy.value, false));
    turn.addEventListener("click", () => sortOn(key, true));
    more.addEventListener("click", () => {
      const first = shown;
      grow();
      // The button may be gone: the focus goes on with the first of the new rows.
      body.querySelectorAll(".toggle")[first]?.focus();
    });
    for (const name of ["datasource", "step", "verdict"]) control(name)?.addEventListener("change", draw);
    control("search").addEventListener("input", draw);
    control("reset").addEventListener("click", () => {
      for (const name of ["search", "datasource", "step", "verdict"]) if (control(name)) control(name).value = "";
      ({ key, direction } = initial);
      draw();
    });
    root.hidden = false;
    root.nextElementSibling.remove();
    draw();
  };

  for (const root of document.querySelectorAll(".browser")) start(root);
})();
