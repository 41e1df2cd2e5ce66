// The table of a board: sorting, filtering and its charts. Filters and order live in the URL; without
// this script the page shows all rows in the order of their ranks.
"use strict";

const FIRST = 100; // rows shown before "Show all rows": more take a browser long to lay out
const table = document.getElementById("board");
const form = document.getElementById("filters");
const body = table?.tBodies[0];
const numeric = new Set(["rank", "accuracy", "difference", "parameters", "multiply_adds", "seconds"]);
const downwards = new Set(["accuracy", "difference", "date"]); // the best or newest first

const headings = table ? [...table.tHead.rows[0].cells] : [];
const keys = headings.map((cell) => cell.dataset.sort);

const rows = table ? [...body.rows].map((element) => {
  const values = { ...element.dataset };
  for (const key of ["neuron", "head"]) {
    values[key] = element.cells[keys.indexOf(key)].textContent.trim();
  }
  values.title = element.querySelector("th bdi").textContent;
  const parsed = (key, value) => numeric.has(key) ? (value === "" ? null : Number(value)) : value;
  for (const key of Object.keys(values)) values[key] = parsed(key, values[key]);
  for (const key of ["title", "neuron", "head"]) {
    // numbers within a text are in the order of numbers
    values[`${key}Order`] = values[key].toLowerCase().replace(/\d+/g, (digits) => digits.padStart(9, "0"));
  }
  values.searched = `${values.title} ${values.authors} ${values.neuron} ${values.head}`.toLowerCase();
  return { element, values };
}) : [];

let order = { key: null, descending: false };
let everything = false;
let charts = [];

function matching(dataset) {
  const wanted = Object.fromEntries(new FormData(form));
  wanted.dataset = dataset ?? wanted.dataset;
  const words = (wanted.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter(({ values }) =>
    ["dataset", "kind", "group"].every((key) => !wanted[key] || values[key] === wanted[key]) &&
    words.every((word) => values.searched.includes(word)));
}

// a search looks at one dataset at a time: the others on which it would find something
function elsewhere() {
  const dataset = form.elements.dataset;
  if (!dataset || !form.elements.q.value.trim()) return [];
  const others = [...dataset.options].map((option) => option.value).filter((name) => name !== dataset.value);
  const found = others.map((name) => [name, matching(name).length]).filter(([, count]) => count);
  return found.map(([name, count]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${count} on ${name}`;
    button.addEventListener("click", () => {
      dataset.value = name;
      update();
      dataset.focus(); // the button is gone
    });
    return button;
  });
}

function sorted(found) {
  if (order.key === null) return found;
  const sign = order.descending ? -1 : 1;
  const missing = (value) => value === null || value === undefined || value === "";
  const valueOf = ({ values }) => values[`${order.key}Order`] ?? values[order.key];
  return [...found].sort((one, two) => {
    const [a, b] = [valueOf(one), valueOf(two)];
    if (missing(a) || missing(b)) return missing(a) - missing(b); // whatever the direction, last
    return sign * ((a > b) - (a < b));
  });
}

function show() {
  const found = sorted(matching());
  const target = location.hash.slice(1);
  const place = found.findIndex(({ element }) => element.id === target);
  const count = everything || place >= FIRST ? found.length : Math.min(FIRST, found.length);
  const shown = document.createDocumentFragment();
  for (const { element } of found.slice(0, count)) shown.append(element);
  body.replaceChildren(shown);
  document.getElementById("count").textContent = `${found.length} of ${rows.length} entries`;
  document.getElementById("elsewhere").replaceChildren(...elsewhere());
  document.getElementById("more").hidden = count === found.length;
  for (const cell of headings) {
    if (cell.dataset.sort !== undefined && cell.dataset.sort === order.key) {
      cell.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    } else {
      cell.removeAttribute("aria-sort");
    }
  }
  return found;
}

function remember() {
  const state = new URLSearchParams();
  for (const [key, value] of new FormData(form)) {
    const first = form.elements[key].options?.[0].value ?? "";
    if (value && value !== first) state.set(key, value);
  }
  if (order.key !== null) state.set("sort", (order.descending ? "-" : "") + order.key);
  const query = state.toString();
  history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
}

function recall() {
  const state = new URLSearchParams(location.search);
  for (const element of form.elements) {
    const value = element.name ? state.get(element.name) : null;
    if (value === null) continue;
    if (!element.options || [...element.options].some((option) => option.value === value)) {
      element.value = value;
    }
  }
  const sort = state.get("sort") ?? "";
  const key = sort.replace(/^-/, "");
  if (key && keys.includes(key)) order = { key, descending: sort.startsWith("-") };
  const target = rows.find(({ element }) => element.id === location.hash.slice(1));
  if (target && form.elements.dataset) form.elements.dataset.value = target.values.dataset;
}

function front(points) {
  const cheapest = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  const best = [];
  for (const point of cheapest) {
    if (!best.length || point.y > best[best.length - 1].y) best.push(point);
  }
  return best;
}

function pointsOf(found, cost) {
  return found
    .filter(({ values }) => values.accuracy !== null && values[cost] !== null)
    .map(({ element, values }) => ({
      x: values[cost], y: values.accuracy, id: element.id, ...values,
    }));
}

const compact = new Intl.NumberFormat("en", { notation: "compact" });

function draw(found) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  for (const chart of charts) chart.destroy();
  charts = [...document.querySelectorAll("#charts canvas")].map((canvas) => {
    const { cost, words } = canvas.dataset;
    const points = pointsOf(found, cost);
    canvas.closest("figure").hidden = points.length === 0; // such as seconds, which files do not have
    const of = (kind) => points.filter((point) => point.kind === kind);
    const axis = (title, callback) => ({
      title: { display: true, text: title, color: colour("--muted") },
      ticks: { color: colour("--muted"), maxTicksLimit: 6, maxRotation: 0, ...callback },
      grid: { color: colour("--line") },
    });
    const scatter = { showLine: false, pointRadius: 5, pointHoverRadius: 7 };
    return new Chart(canvas, {
      type: "scatter",
      data: {
        datasets: [
          { ...scatter, label: "quadratic", data: of("quadratic"), backgroundColor: "#0072b2" },
          { ...scatter, label: "linear", data: of("linear"), pointStyle: "rectRot", backgroundColor: "#d55e00" },
          {
            label: "Pareto front", data: front(points.filter((point) => point.group === "full runs")),
            pointStyle: "line", showLine: true, pointRadius: 0, pointHitRadius: 0, borderColor: colour("--muted"), borderDash: [5, 4], borderWidth: 1.5, stepped: "before",
          },
        ],
      },
      options: {
        animation: false,
        maintainAspectRatio: false,
        scales: {
          x: { ...axis(words, { callback: (value) => compact.format(value) }), type: "logarithmic" },
          y: axis("accuracy (%)"),
        },
        plugins: {
          legend: { labels: { color: colour("--ink"), usePointStyle: true, boxHeight: 7 } },
          tooltip: { callbacks: { label: ({ raw }) => `${raw.title}: ${raw.y.toFixed(2)} %, ${raw.x.toLocaleString("en")}` } },
        },
        onClick: (event, hit, chart) => {
          const [first] = hit;
          const id = first && chart.data.datasets[first.datasetIndex].data[first.index].id;
          if (id) location.href = document.getElementById(id)?.querySelector("th a").href ?? `#${id}`;
        },
      },
    });
  });
}

function update() {
  remember();
  draw(show());
}

if (table) {
  form.hidden = false;
  document.getElementById("charts").hidden = false;
  for (const cell of headings) {
    const key = cell.dataset.sort;
    if (key === undefined) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const again = order.key === key;
      order = { key, descending: again ? !order.descending : downwards.has(key) };
      remember();
      show();
    });
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    order = { key: null, descending: false };
    setTimeout(update); // after the fields have been cleared
  });
  document.querySelector("#more button").addEventListener("click", () => {
    everything = true;
    show();
  });
  recall();
  const found = show();
  document.getElementById(location.hash.slice(1))?.scrollIntoView({ block: "center" });
  requestAnimationFrame(() => setTimeout(() => draw(found))); // the table first, then the charts
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(matching()));
}
