"use strict";
(() => {
  const root = document.documentElement;
  const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a sandboxed frame has none */ } };
  const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (kept("manifpt-theme")) root.dataset.theme = kept("manifpt-theme");

  // Tables: a click on a head sorts, a text and choices filter.
  const value = (row, column) => {
    const cell = row.cells[column];
    const given = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(given.replaceAll(",", ""));
    return given !== "" && !Number.isNaN(number) ? number : given;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number") return -1;
    if (typeof b === "number") return 1;
    return a.localeCompare(b);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (head.dataset.sort === "no") return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [value(row, column), row]);
        rows.sort((a, b) => (up ? 1 : -1) * compare(a[0], b[0]));
        body.append(...rows.map((pair) => pair[1]));
      });
    });
  }
  for (const tools of document.querySelectorAll("[data-filters]")) {
    const items = [...document.querySelectorAll(tools.dataset.filters)];
    const texts = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
    const shown = tools.querySelector("output");
    const apply = () => {
      let count = 0;
      const text = (tools.querySelector("input")?.value ?? "").toLowerCase();
      for (const item of items) {
        let fits = texts.get(item).includes(text);
        for (const choice of tools.querySelectorAll("select")) {
          if (choice.value && item.dataset[choice.name] !== choice.value) fits = false;
        }
        item.hidden = !fits;
        if (fits) count += 1;
      }
      if (shown) shown.textContent = `${count} of ${items.length} shown`;
    };
    tools.addEventListener("input", apply);
    apply();
  }

  // What scrolls can be reached by the keyboard, and has the name of its section.
  const reachable = () => {
    for (const part of document.querySelectorAll(".scroll")) {
      const scrolls = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
      const title = part.closest("section")?.querySelector("h2")?.textContent;
      part.toggleAttribute("tabindex", scrolls);
      part.toggleAttribute("role", scrolls);
      if (!scrolls) continue;
      part.tabIndex = 0;
      part.setAttribute("role", "region");
      part.setAttribute("aria-label", title ?? document.title);
    }
  };
  reachable();
  addEventListener("resize", reachable);

  // Charts: Plotly is packed into the page, and gets the colours of the theme.
  const colours = () => {
    const style = getComputedStyle(root);
    return { ink: style.getPropertyValue("--ink").trim(), line: style.getPropertyValue("--line").trim(), panel: style.getPropertyValue("--panel").trim() };
  };
  const themed = (layout) => {
    const { ink, line, panel } = colours();
    const made = {
      ...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12.5, color: ink },
      margin: { l: 58, r: 16, t: 14, b: 50 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: panel, bordercolor: line, font: { color: ink }, align: "left" },
    };
    for (const name of ["xaxis", "yaxis"]) made[name] = { gridcolor: line, linecolor: line, zerolinecolor: line, ...layout[name] };
    return made;
  };
  const unpacked = async () => {
    const packed = document.getElementById("plotly").textContent;
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const figures = [...document.querySelectorAll("figure.chart")];
  const drawn = [];
  const drawing = async () => {
    if (!figures.length) return;
    await unpacked();
    for (const figure of figures) {
      const place = figure.querySelector(".plot");
      const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
      place.textContent = "";
      await Plotly.newPlot(place, data, themed(layout), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
      drawn.push([place, layout]);
    }
  };
  const recolour = () => drawn.forEach(([place, layout]) => Plotly.relayout(place, themed(structuredClone(layout))));
  document.getElementById("theme")?.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    keep("manifpt-theme", root.dataset.theme);
    recolour();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  // Paper is white: charts are drawn again in light colours, as the style sheet has all else.
  let screen;
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
    screen = root.dataset.theme;
    root.dataset.theme = "light";
    recolour();
    drawn.forEach(([place]) => Plotly.Plots.resize(place));
  });
  addEventListener("afterprint", () => {
    if (screen) root.dataset.theme = screen;
    else delete root.dataset.theme;
    recolour();
  });
  drawing().then(
    () => { root.dataset.charts = String(drawn.length); },
    (error) => {
      root.dataset.charts = "failed";
      for (const figure of figures) if (!figure.querySelector(".main-svg")) figure.querySelector(".plot").textContent = "This chart could not be drawn.";
      console.error(error);
    },
  );
})();
