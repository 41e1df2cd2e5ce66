// The curves of an entry's page.
"use strict";

const { step, seeds } = JSON.parse(document.getElementById("curves-data").textContent);

function draw() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = (title) => ({
    title: { display: true, text: title, color: colour("--muted") },
    ticks: { color: colour("--muted") },
    grid: { color: colour("--line") },
  });
  return new Chart(document.getElementById("curve"), {
    type: "line",
    data: {
      datasets: Object.entries(seeds).map(([seed, values], place, every) => ({
        label: `seed ${seed}`,
        data: values.map((y, index) => ({ x: step[index], y })),
        borderColor: `hsl(${205 + (40 * place) / every.length} 80% ${35 + (30 * place) / every.length}%)`,
        borderWidth: 1.5,
        pointRadius: 0,
        pointHitRadius: 6,
      })),
    },
    options: {
      animation: false,
      maintainAspectRatio: false,
      parsing: false,
      scales: { x: { ...axis("step"), type: "linear" }, y: axis("test accuracy (%)") },
      plugins: { legend: { labels: { color: colour("--ink"), boxHeight: 1 } } },
    },
  });
}

let chart = draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  chart.destroy();
  chart = draw();
});
