// Draws the page from the data in it. Text of the watched program enters the page as text only
// (`textContent`), never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const run = data.run;

  // ---- Words and numbers, as in the summary on the terminal.

  const count = (n) => Math.round(n).toLocaleString("en-US");
  const counted = (n, one, many) => `${count(n)} ${n === 1 ? one : many}`;
  const three = (x) => x.toFixed(x < 9.995 ? 2 : x < 99.95 ? 1 : 0);
  const brief = (n) => n < 1000 ? String(n) : n < 1e6 ? `${+(n / 1e3).toFixed(1)} k` : n < 1e9 ? `${+(n / 1e6).toFixed(1)} M` : `${+(n / 1e9).toFixed(1)} G`;

  function scaled(value, step, units, round) {
    let unit = 0;
    while (unit < units.length - 1 && value >= step - 0.5) {
      value /= step;
      unit += 1;
    }
    return `${unit === 0 ? Math.round(value) : round(value)} ${units[unit]}`;
  }
  const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
  const bytes = (n) => scaled(n, 1024, SIZES, three);
  const roundBytes = (n) => scaled(n, 1024, SIZES, (x) => +x.toFixed(0));
  const duration = (ns) => {
    const s = Math.round(ns / 1e9);
    if (s >= 7200) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
    if (s >= 120) return `${Math.floor(s / 60)} min ${s % 60} s`;
    return scaled(ns, 1000, ["ns", "µs", "ms", "s"], three);
  };
  const roundDuration = (ns) => ns === 0 ? "0" : scaled(ns, 1000, ["ns", "µs", "ms", "s"], (x) => +x.toPrecision(12));
  const percent = (part, whole) => {
    if (!whole) return "–";
    const p = part / whole * 100;
    return p === 0 ? "0%" : p < 0.01 ? "<0.01%" : `${three(p)}%`;
  };
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const most = (list) => list.reduce((a, b) => Math.max(a, b), 0);

  // ---- Elements.

  const at = (id) => document.getElementById(id);
  function make(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const swatch = (name, kind) => {
    const element = make(kind || "i", kind ? { class: "swatch" } : {});
    element.style.background = `var(--${name}, var(--none))`;
    return element;
  };

  // ---- The events in the kernel's order, calls that announced nothing last: the order of all stacks.

  const ORDER = ["unmap", "clear", "protection_vma", "protection_page", "soft_dirty", "release", "migrate", "exclusive"];
  const place = (kind) => kind.name === null ? 99 : ORDER.indexOf(kind.name) < 0 ? 98 : ORDER.indexOf(kind.name);
  const kinds = data.kinds.slice().sort((a, b) => place(a) - place(b))
    .map((kind) => ({ ...kind, id: kind.name === null ? "none" : kind.name, label: kind.name === null ? "no change" : kind.name }));

  // ---- Charts. Each is a function that draws it anew, for when the colour scheme changes.

  const charts = [];
  const FONT = "12px system-ui, sans-serif";
  const axis = (more) => ({
    stroke: color("muted"), font: FONT, ticks: { show: false }, grid: { stroke: color("grid"), width: 1 }, ...more,
  });

  // `build(width)` returns { options, data, keys(index) }: keys are [color, label, value] for the
  // bin under the cursor, or for all if index is null.
  function chart(host, height, build) {
    const keys = make("div", { class: "keys" });
    const box = make("div", {});
    host.append(keys, box);
    let plot = null;
    const draw = () => {
      if (plot) plot.destroy();
      const built = build();
      const show = (index) => {
        const at = built.at && index !== null ? [make("span", { class: "at" }, built.at(index))] : [];
        keys.replaceChildren(...built.keys(index).map(([name, label, value]) =>
          make("span", {}, name ? swatch(name) : null, `${label} `, make("b", {}, value))), ...at);
      };
      show(null);
      plot = new uPlot({
        width: box.clientWidth || 600, height, legend: { show: false }, padding: [8, 22, 0, 0],
        ...built.options,
        cursor: { y: false, points: { show: false }, drag: { x: true, y: false }, ...(built.options.cursor || {}) },
        hooks: { setCursor: [(u) => show(pointed(u, built))] },
      }, built.data, box);
    };
    charts.push(draw);
    draw();
    new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height })).observe(box);
  }

  // The bin under the cursor: the nearest bar, or where bins begin at their mark, the one it is in.
  function pointed(u, built) {
    if (u.cursor.left < 0 || u.cursor.idx === undefined || u.cursor.idx === null) return null;
    return built.pick ? built.pick(u.posToVal(u.cursor.left, "x")) : u.cursor.idx;
  }

  const empty = (host, words) => host.append(make("p", { class: "empty" }, words));
  const NO_RECORDS = "No records of single calls were taken, so there is nothing to draw here.";

  // Each row the sum of itself and those before it; drawn tallest first, so that all stay visible.
  function stacked(rows) {
    const out = [];
    rows.forEach((row, i) => out.push(row.map((value, j) => value + (i ? out[i - 1][j] : 0))));
    return out;
  }
  const filled = (row, length) => Array.from({ length }, (_, i) => row[i] || 0);
  const named = (options) => ({ scale: "y", points: { show: false }, ...options });

  function stack(rows, paths) {
    const sums = stacked(rows.map((row) => row.values)).reverse();
    const names = rows.map((row) => row.id).reverse();
    const series = names.map((name) => named({
      stroke: color(name) || color("none"), fill: color(name) || color("none"), width: 0, paths,
    }));
    return { sums, series };
  }

  function timeline() {
    const total = sum(kinds.map((kind) => sum(kind.timeline)));
    at("when-lede").textContent = total
      ? `Calls by the change that they announced first, in steps of ${duration(data.bin_ns)}. ` +
        "Drag to look closer, double-click to see all again."
      : "";
    if (!total) {
      empty(at("timeline"), NO_RECORDS);
      at("timeline").nextElementSibling.remove();
      return;
    }
    const edges = Array.from({ length: data.bins + 1 }, (_, i) => i * data.bin_ns);
    const limit = Math.max(run.wall_ns, data.bin_ns);
    const rows = kinds.map((kind) => ({ ...kind, values: filled(kind.timeline, data.bins) }));
    const x = {
      scales: { x: { time: false, range: (u, low, high) => [low, Math.min(high, Math.max(limit, low + 1))] } },
      cursor: { sync: { key: "time" } },
    };
    const span = (i) => `${duration(edges[i])} – ${duration(edges[i] + data.bin_ns)}`;
    const pick = (ns) => Math.max(0, Math.min(Math.floor(ns / data.bin_ns), data.bins - 1));
    chart(at("timeline"), 240, () => {
      const { sums, series } = stack(rows, uPlot.paths.stepped({ align: 1 }));
      return {
        data: [edges, ...sums.map((row) => [...row, row[row.length - 1]])],
        pick, at: span,
        keys: (i) => rows.map((row) => [row.id, row.label, count(i === null ? sum(row.values) : row.values[i])]),
        options: {
          ...x,
          scales: { ...x.scales, y: { range: (u, low, high) => [0, Math.max(1, high * 1.06)] } },
          series: [{}, ...series],
          axes: [
            axis({ space: 90, size: 32, values: (u, list) => list.map(roundDuration) }),
            axis({ size: 60, incrs: whole, values: (u, list) => list.map(brief) }),
          ],
        },
      };
    });
    const longest = filled(data.longest, data.bins).map((ns) => ns || null);
    chart(at("longest"), 150, () => ({
      data: [edges, [...longest, null]],
      pick, at: span,
      keys: (i) => [["accent", i === null ? "of all" : "longest",
        i === null ? duration(most(data.longest)) : longest[i] ? duration(longest[i]) : "none"]],
      options: {
        ...x,
        scales: { ...x.scales, y: { distr: 3, range: (u, low, high) => decades(low, high) } },
        series: [{}, {
          scale: "y", paths: () => null,
          points: { show: true, size: 4.5, width: 0, fill: color("accent"), stroke: color("accent") },
        }],
        axes: [
          axis({ space: 90, size: 32, values: (u, list) => list.map(roundDuration) }),
          axis({ size: 60, splits: (u, i, low, high) => powers(low, high), filter: (u, list) => list, values: (u, list) => list.map(roundDuration) }),
        ],
      },
    }));
  }

  const whole = [1, 2, 5].flatMap((n) => Array.from({ length: 16 }, (_, e) => n * 10 ** e)).sort((a, b) => a - b);
  const decades = (low, high) => [10 ** Math.floor(Math.log10(low || 1)), 10 ** Math.max(Math.ceil(Math.log10(high || 10)), Math.floor(Math.log10(low || 1)) + 1)];
  function powers(low, high) {
    const out = [];
    for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e++) out.push(10 ** e);
    return out;
  }

  function latency(host, name, label, times) {
    const panel = make("div", { class: "panel" }, make("h3", {}, label));
    host.append(panel);
    if (!times.count) return empty(panel, "No call had a bracket.");
    // One axis for all three: position is the logarithm of the bucket's upper bound.
    const bounds = [run.starts, run.changes, run.ends].flatMap((each) => each.buckets.map(([bound]) => Math.max(1, bound)));
    const first = Math.log2(bounds.reduce((a, b) => Math.min(a, b)));
    const last = Math.log2(most(bounds));
    const slots = Math.round(last - first) + 1;
    const values = filled([], slots);
    for (const [bound, n] of times.buckets) values[Math.round(Math.log2(Math.max(1, bound)) - first)] += n;
    const xs = values.map((_, i) => first + i - 0.5);
    const upper = (i) => 2 ** (first + i);
    chart(panel, 170, () => ({
      data: [[xs[0] - 1, ...xs, xs[slots - 1] + 1], [null, ...values.map((n) => n || null), null]],
      at: (i) => i < 1 || i > slots ? "" : `${duration(upper(i - 1) / 2)} – ${duration(upper(i - 1))}`,
      keys: (i) => i === null
        ? [[name, "median", duration(times.p50_ns)], [null, "p99", duration(times.p99_ns)], [null, "max", duration(times.max_ns)]]
        : [[name, "calls", count(values[i - 1] || 0)]],
      options: {
        scales: {
          x: { time: false, range: [first - 1.2, last + 0.2] },
          y: { distr: 3, range: (u, low, high) => [0.5, Math.max(10, high * 1.3)] },
        },
        series: [{}, named({ fill: color(name), stroke: color(name), width: 0, paths: uPlot.paths.bars({ size: [0.86, 60], radius: 0.12 }) })],
        axes: [
          axis({ size: 32, grid: { show: false }, splits: () => powers(2 ** (first - 1), 2 ** (last + 0.2)).map(Math.log2), values: (u, list) => thin(list, u.width, 62).map((v) => v === null ? "" : roundDuration(Math.round(2 ** v))) }),
          axis({ size: 44, splits: (u, i, low, high) => powers(1, high), filter: (u, list) => list, values: (u, list) => thin(list, 150, 26).map((v) => v === null ? "" : brief(v)) }),
        ],
      },
    }));
  }

  // Keeps the labels that have room.
  function thin(list, room, each) {
    const step = Math.ceil(list.length * each / Math.max(room - 50, each));
    return list.map((value, i) => i % step === 0 ? value : null);
  }

  function sizes() {
    const rows = kinds.filter((kind) => sum(kind.sizes) > 0);
    if (!rows.length) return empty(at("sizes"), kinds.length ? "No change had a range." : NO_RECORDS);
    const used = rows.flatMap((kind) => kind.sizes.map((n, i) => n ? i : null).filter((i) => i !== null));
    const low = used.reduce((a, b) => Math.min(a, b)), high = most(used);
    const bits = Array.from({ length: high - low + 3 }, (_, i) => low + i - 1);
    const shown = rows.map((kind) => ({ ...kind, values: bits.map((bit) => kind.sizes[bit] || 0) }));
    const from = (i) => bits[i] < 1 ? 0 : 2 ** (bits[i] - 1);
    chart(at("sizes"), 220, () => {
      const { sums, series } = stack(shown, uPlot.paths.bars({ size: [0.84, 70], radius: 0.06 }));
      return {
        data: [bits.map((bit) => bit - 0.5), ...sums],
        at: (i) => `${roundBytes(from(i))} – ${roundBytes(from(i) * 2)}`,
        keys: (i) => shown.map((row) => [row.id, row.label, count(i === null ? sum(row.values) : row.values[i])]),
        options: {
          scales: {
            x: { time: false, range: [low - 1.2, high + 0.2] },
            y: { range: (u, low, high) => [0, Math.max(1, high * 1.06)] },
          },
          series: [{}, ...series],
          axes: [
            axis({ size: 32, grid: { show: false }, splits: () => bits.map((bit) => bit), values: (u, list) => thin(list, u.width, 62).map((bit) => bit === null || bit < 0 ? "" : roundBytes(2 ** bit)), gap: 6 }),
            axis({ size: 48, incrs: whole, values: (u, list) => list.map(brief) }),
          ],
        },
      };
    });
  }

  // ---- Tables. A column is { head, cell(row), words, value(row) }: with a value it can be sorted by.

  const FEW = 12;
  function table(host, caption, columns, rows, sorted) {
    if (!rows.length) return host.append(make("h3", {}, caption), make("p", { class: "empty" }, "none"));
    const body = make("tbody", {});
    const head = make("tr", {});
    let order = null, shown = rows.length > FEW + 3 ? FEW : rows.length, now = rows;
    const fill = (list) => body.replaceChildren(...(now = list).slice(0, shown).map((row) => make("tr", {}, ...columns.map((column) => {
      const content = column.cell(row);
      const cell = make("td", { class: column.class || "" });
      cell.append(...(Array.isArray(content) ? content : [content]));
      if (content === "0" || content === "·") cell.classList.add("zero");
      return cell;
    }))));
    columns.forEach((column) => {
      const th = make("th", { class: column.class || "", scope: "col" });
      if (sorted && column.value) {
        const button = make("button", { type: "button" }, column.head);
        button.addEventListener("click", () => sort(column, th));
        th.append(button);
      } else th.append(column.head);
      head.append(th);
      column.th = th;
    });
    function sort(column, th) {
      const down = order && order.th === th ? !order.down : !(column.class || "").includes("words") && !(column.class || "").includes("place");
      order = { th, down };
      for (const other of head.children) other.removeAttribute("aria-sort");
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      fill(rows.slice().sort((a, b) => {
        const [x, y] = [column.value(a), column.value(b)];
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      }));
    }
    host.append(make("table", {}, caption ? make("caption", {}, caption) : null, columns.some((column) => column.head) ? make("thead", {}, head) : null, body));
    if (sorted) sort(columns[sorted], columns[sorted].th);
    else fill(rows);
    if (shown < rows.length) {
      const more = make("button", { type: "button", class: "more" }, `Show all ${rows.length}`);
      more.addEventListener("click", () => {
        shown = rows.length;
        fill(now);
        more.remove();
      });
      host.append(more);
    }
    if (host.classList.contains("scroll")) host.setAttribute("tabindex", "0");
  }

  const number = (head, get, show) => ({ head, value: get, cell: (row) => (show || count)(get(row)) });
  const words = (head, get) => ({ head, class: "words", value: get, cell: get });
  // What is rare may have been forgotten and begun again: then its count is a lower bound.
  const counts = (row) => count(row.count) + (row.missed ? "+" : "");
  const key = (name, text) => make("span", {}, swatch(name, "span"), text);
  const base = (path) => path.slice(path.lastIndexOf("/") + 1);
  // A long symbol is best folded between its parts.
  const foldable = (symbol) => symbol.split(/(?<=::|[<,+])/).flatMap((part) => [part, make("wbr", {})]);
  const caller = (head) => ({
    head, class: "words place", value: (row) => row.symbol,
    cell: (row) => [make("span", { class: "mono clamp", title: row.symbol }, ...foldable(row.symbol)), make("small", { title: row.file }, row.file.startsWith("/") ? base(row.file) : row.file)],
  });
  function bar(parts, whole) {
    const line = make("div", {});
    for (const [name, value] of parts) {
      if (!value) continue;
      const piece = swatch(name);
      piece.style.width = `${value / whole * 100}%`;
      line.append(piece);
    }
    return line;
  }

  function sites() {
    const rows = data.sites;
    at("where-lede").textContent = !rows.length ? "" :
      (data.sites_complete && data.sites_known <= rows.length ? "Every place that made a memory call" : `The ${rows.length} busiest places that made memory calls`) +
      ", and which call. Time is that of the brackets and of the calls without one." +
      (rows.some((row) => row.missed) ? " Counts marked + may be higher: there were too many places to keep count of all." : "");
    if (!rows.length) return empty(at("sites"), NO_RECORDS);
    const top = most(rows.map((row) => row.count));
    table(at("sites"), null, [
      caller("called from"),
      words("call", (row) => row.call),
      { ...number("count", (row) => row.count), cell: counts },
      { head: "", class: "bar", cell: (row) => bar([["accent", row.count]], top) },
      { ...number("failed", (row) => row.failed), cell: (row) => row.failed ? make("span", { class: "failed" }, count(row.failed)) : "·" },
      number("bytes", (row) => row.bytes, (n) => n ? bytes(n) : "·"),
      number("time", (row) => row.total_ns, duration),
      { head: "each", value: (row) => row.total_ns / row.count, cell: (row) => duration(row.total_ns / row.count) },
    ], rows, 2);
  }

  function threads() {
    const rows = data.threads;
    const host = at("threads");
    at("who-lede").textContent = !rows.length ? "" :
      (data.threads_complete && data.threads_known <= rows.length ? "Every thread that made memory calls" : `The ${rows.length} busiest threads`) +
      ", and when. The stronger the colour, the more calls." +
      (rows.some((row) => row.missed) ? " Counts marked + may be higher: there were too many threads to keep count of all." : "");
    if (!rows.length) return empty(host, NO_RECORDS);
    const grid = make("div", { class: "strips" });
    grid.append(...["thread", "", "calls", "time in them"].map((text, i) => make("div", { class: `head${i > 1 ? " number" : ""}${i > 2 ? " busy" : ""}` }, text)));
    const top = Math.sqrt(most(rows.map((row) => most(row.strip))));
    for (const row of rows) {
      const canvas = make("canvas", { width: data.strip_bins, height: 1, role: "img", "aria-label": `activity of thread ${row.tid}` });
      charts.push(() => {
        const pen = canvas.getContext("2d");
        pen.clearRect(0, 0, data.strip_bins, 1);
        pen.fillStyle = color("accent");
        row.strip.forEach((n, i) => {
          pen.globalAlpha = n ? 0.18 + 0.82 * Math.sqrt(n) / top : 0;
          pen.fillRect(i, 0, 1, 1);
        });
      });
      charts[charts.length - 1]();
      grid.append(
        make("div", {}, `${row.tid}`, row.tid === row.pid ? make("span", { class: "faint" }, " main") : make("span", { class: "faint" }, ` of ${row.pid}`)),
        canvas, make("div", { class: "number" }, counts(row)), make("div", { class: "number busy faint" }, duration(row.busy_ns)));
    }
    const full = data.strip_bins * data.strip_bin_ns;
    grid.append(make("div", {}), make("div", { class: "scale" }, make("span", {}, "0"), make("span", {}, duration(Math.min(full, Math.max(run.wall_ns, data.strip_bin_ns))))));
    host.append(grid);
  }

  function slowest() {
    const rows = data.slowest;
    at("slow-lede").textContent = rows.length ? "From the first start to the last end. A long start or end is a slow subscriber; a long call is the kernel, or a wait for the lock of the address space." : "";
    if (!rows.length) return empty(at("slowest"), data.kinds.length ? "No call had a bracket." : NO_RECORDS);
    const top = rows[0].took_ns || 1;
    table(at("slowest"), null, [
      number("took", (row) => row.took_ns, duration),
      { head: "", class: "bar",
        cell: (row) => bar([["start", row.starts_ns], ["change", row.change_ns], ["end", row.ends_ns]], top) },
      number(key("start", "start"), (row) => row.starts_ns, duration),
      number(key("change", "call"), (row) => row.change_ns, duration),
      number(key("end", "end"), (row) => row.ends_ns, duration),
      number("at", (row) => row.time_ns, duration),
      { head: "thread", value: (row) => row.tid, cell: (row) => String(row.tid) },
      { head: "change", class: "words", value: (row) => row.call, cell: (row) => [row.call, make("span", { class: "faint" }, ` ${row.event}`),
        ...(row.failed ? [make("span", { class: "failed" }, " failed")] : []), ...(row.refused ? [make("span", { class: "failed" }, " refused")] : [])] },
      { ...number("bytes", (row) => row.bytes, bytes), cell: (row) => make("span", { title: `from ${row.start}` }, bytes(row.bytes)) },
      caller("called from"),
    ], rows, "0");
  }

  // ---- The head of the page, the numbers, and what is missing.

  function head() {
    at("command").textContent = data.command;
    at("ending").textContent = `It ${data.ending} after ${duration(run.wall_ns)}, with ${counted(run.processes, "process", "processes")} and ${counted(run.threads, "thread", "threads")}.`;
    const say = (tone, mark, text) => at("verdicts").append(make("li", { class: tone }, `${mark} ${text}`));
    const { starts, ends, cut_short, abandoned } = run.balance;
    if (data.balance === "equal") say("good", "✓", `balanced: ${counted(starts, "start", "starts")}, as many ends`);
    else if (data.balance === "cut short") say("good", "✓", `balanced: ${count(starts)} starts, ${count(ends)} ends, ${count(cut_short)} cut short`);
    else if (data.balance === "elevated") say("bad", "✗", `not balanced: ${counted(data.unbalanced, "start has", "starts have")} no end`);
    else say("bad", "✗", `not balanced: ${counted(data.unbalanced, "end", "ends")} without a start`);
    if (abandoned) say("careful", "!", `${counted(abandoned, "bracket", "brackets")} abandoned, and ended`);
    const programs = sum(Object.values(run.programs_unseen));
    const places = run.unseen.length + run.unseen_more;
    if (!places && !programs && !run.processes_lost) say("good", "✓", "everything was seen");
    if (places) say("careful", "!", `${counted(places, "place", "places")} not seen`);
    if (programs + run.processes_lost) say("careful", "!", `${counted(programs + run.processes_lost, "process", "processes")} ran unwatched`);
    if (run.check) {
      const of = (severity) => run.check.findings.filter((each) => each.severity === severity).length;
      if (of("error")) say("bad", "✗", `${counted(of("error"), "stale registration", "stale registrations")}`);
      if (of("warning")) say("careful", "!", `${counted(of("warning"), "warning", "warnings")} about registrations`);
      if (!of("error") && !of("warning")) say("good", "✓", "no stale registration");
    }
    if (run.records.dropped) say("bad", "✗", `${counted(run.records.dropped, "record", "records")} dropped: the pictures have gaps`);

    const all = Object.values(run.calls);
    const changes = Object.values(run.events);
    const told = run.starts.total_ns + run.ends.total_ns;
    const card = (name, value, note) => at("cards").append(make("div", {}, make("dt", {}, name), make("dd", {}, value), make("small", {}, note)));
    const failed = sum(all.map((each) => each.failed));
    card("memory calls", count(sum(all.map((each) => each.count))), `${count(failed)} failed`);
    card("changes", count(sum(changes.map((each) => each.changes))), `announced by ${counted(sum(all.map((each) => each.bracketed)), "call", "calls")}`);
    card("memory in them", bytes(sum(changes.map((each) => each.bytes))), "every change counted");
    card("time in subscribers", duration(told), `${percent(told, run.wall_ns)} of the wall time`);
    card("median start + end", duration(run.starts.p50_ns + run.ends.p50_ns), `p99 ${duration(run.starts.p99_ns + run.ends.p99_ns)}`);
    if (run.refusals.every || run.refusals.refused) card("refused", count(run.refusals.refused), `${count(run.refusals.quarantined)} quarantined, ${count(run.refusals.failed)} failed`);
  }

  function unseen() {
    const host = at("unseen");
    const items = [];
    for (const each of run.unseen) {
      const where = [`at ${each.address}`, each.processes > 1 ? `in ${count(each.processes)} processes` : null].filter((text) => text);
      items.push(make("li", {}, make("span", { class: "mono" }, each.file), each.call ? make("b", {}, ` ${each.call}`) : null,
        `: ${each.reason}`, make("small", {}, where.join(", "))));
    }
    if (run.unseen_more) items.push(make("li", {}, `and ${counted(run.unseen_more, "more place", "more places")}`));
    for (const [program, times] of Object.entries(run.programs_unseen)) {
      items.push(make("li", {}, make("span", { class: "mono" }, program), ": started by a watched process and ran unwatched",
        times > 1 ? make("small", {}, `${count(times)} times`) : null));
    }
    if (run.processes_lost) items.push(make("li", {}, `${counted(run.processes_lost, "process", "processes")} ran unwatched: the session had no room for more`));
    if (!items.length) {
      host.append(make("p", { class: "lede" }, "Nothing: no program that was started and no place in one that makes memory calls is known to have been missed."));
      return;
    }
    host.append(make("p", { class: "lede" }, "A memory call from one of these places is not announced and not counted above. Whoever caches translations would not hear of it."),
      make("div", { class: "panel" }, make("ul", { class: "unseen" }, ...items)));
  }

  // ---- What the program has registered with the kernel, if that was checked.

  const TONES = { error: "bad", warning: "careful", note: "plain" };
  const KINDS = { io_uring_buffer: "io_uring buffer", io_uring_buffer_ring: "io_uring buffer ring", kvm_memslot: "KVM memslot", vfio: "VFIO mapping", iommufd: "iommufd mapping", rdma: "RDMA region", mlock: "locked range" };

  function registrations() {
    const check = run.check;
    if (!check) return;
    at("check").hidden = false;
    const kinds = Object.entries(check.registered).map(([name, of]) => `${counted(of.count, KINDS[name] || name, `${KINDS[name] || name}s`)} of ${bytes(of.bytes)}`);
    const gaps = [
      [check.lost, "finding was not told, there were too many at a time", "findings were not told, there were too many at a time"],
      [check.untracked, "registration was not followed, the table was full", "registrations were not followed, the table was full"],
      [check.missed, "call was not looked at, the table was in use", "calls were not looked at, the table was in use"],
      [check.processes_unchecked, "process had no memory for its table", "processes had no memory for their tables"],
      [check.processes_blind, "process may not see page frames, and was judged by its calls", "processes may not see page frames, and were judged by their calls"],
    ].filter(([n]) => n).map(([n, one, many]) => ` ${counted(n, one, many)}.`).join("");
    at("check-lede").textContent = (kinds.length ? `The program has registered ${kinds.join(", ")}; ${counted(check.changes, "change of memory met them", "changes of memory met them")}.` : "The program has registered nothing.") +
      (check.findings.length ? "" : " Nothing wrong was found.") + gaps;
    const stack = (name, each, more) => [
      make("dt", {}, name),
      make("dd", {}, `${each.call}${more}, thread ${each.tid}, after ${duration(each.time_ns)}`,
        make("ol", { start: "0" }, ...each.stack.map((frame) => make("li", {}, make("span", { class: "mono" }, frame.symbol), make("span", { class: "faint" }, ` ${frame.file}`))))),
    ];
    for (const each of check.findings) {
      const index = each.index > 65535 ? `0x${each.index.toString(16)}` : each.index;
      const times = each.times > 1 ? `, ${count(each.times)} times` : "";
      const { changed, other, empty, unmapped } = each.pages;
      at("findings").append(make("details", { class: "panel finding", ...(each.severity === "note" ? {} : { open: "" }) },
        make("summary", {}, make("b", { class: TONES[each.severity] }, each.verdict), ` ${each.severity}${times}: ${KINDS[each.kind] || each.kind} ${index}, ${bytes(each.bytes)} at ${each.start}`,
          each.registrations > 1 ? `, and ${counted(each.registrations - 1, "other", "others")}` : ""),
        make("dl", {}, ...stack("registered", each.registered, ""),
          ...stack(each.inherited ? "used" : "changed", each.changed, `: ${bytes(each.changed_bytes)} from ${each.changed_start} on`),
          ...(changed ? [make("dt", {}, "pages"), make("dd", {}, `${count(changed)} changed; now ${count(other)} others, ${count(empty)} empty, ${count(unmapped)} not mapped`)] : []),
          make("dt", {}, "means"), make("dd", {}, each.means), make("dt", {}, "do"), make("dd", {}, each.advice))));
    }
  }

  function numbers() {
    const dot = (n) => n ? count(n) : "·";
    table(at("calls"), "System calls", [
      { head: "call", class: "words", cell: (row) => row[0] },
      { head: "count", cell: (row) => count(row[1].count) },
      { head: "failed", cell: (row) => dot(row[1].failed) },
      { head: "bracketed", cell: (row) => dot(row[1].bracketed) },
    ], Object.entries(run.calls).sort((a, b) => b[1].count - a[1].count));
    table(at("events"), "Changes", [
      { head: "event", class: "words", cell: (row) => [swatch(row[0], "span"), row[0]] },
      { head: "changes", cell: (row) => count(row[1].changes) },
      { head: "bytes", cell: (row) => row[1].bytes ? bytes(row[1].bytes) : "·" },
      { head: "each", cell: (row) => row[1].bytes ? bytes(row[1].bytes / row[1].changes) : "·" },
    ], Object.entries(run.events));
    table(at("times"), "Times", [
      { head: "", class: "words", cell: (row) => row[0] },
      { head: "median", cell: (row) => duration(row[1].p50_ns) },
      { head: "p99", cell: (row) => duration(row[1].p99_ns) },
      { head: "max", cell: (row) => duration(row[1].max_ns) },
      { head: "total", cell: (row) => duration(row[1].total_ns) },
      { head: "of wall", cell: (row) => percent(row[1].total_ns, run.wall_ns) },
    ], [["starts", run.starts], ["system calls", run.changes], ["ends", run.ends]]);
    const { sites, records, hook, balance, refusals } = run;
    table(at("watching"), "Watching", [
      { head: "", class: "words", cell: (row) => row[0] },
      { head: "", cell: (row) => row[1] },
    ], [
      ["starts, ends", `${count(balance.starts)}, ${count(balance.ends)}`],
      ["cut short, abandoned", `${count(balance.cut_short)}, ${count(balance.abandoned)}`],
      ...(refusals.every ? [["refused starts, one in", count(refusals.every)]] : []),
      ["call sites patched", count(sites.t1 + sites.t2 + sites.t3)],
      ["by shape: T1, T2, T3", `${count(sites.t1)}, ${count(sites.t2)}, ${count(sites.t3)}`],
      ["mappings searched", `${count(sites.mappings_searched)} in ${duration(sites.search_ns)}`],
      ["records read, dropped", `${count(records.read)}, ${count(records.dropped)}`],
      ["buffer for records", bytes(records.buffer_bytes)],
      ["memory calls of the hook itself", count(hook.own_calls)],
      ["memory held by the hook, at most", bytes(hook.own_bytes)],
    ]);
    at("footer").append(make("p", {}, `The numbers at the top, under “How long” and under “All numbers” are exact counts of everything that was seen. The other pictures and tables are made from ${counted(records.read, "record", "records")} of single calls` +
      (records.dropped ? `; ${count(records.dropped)} more were dropped because the buffer was full.` : "; none was dropped.")));
  }

  at("page").hidden = false;
  head();
  registrations();
  timeline();
  latency(at("latencies"), "start", "Starts", run.starts);
  latency(at("latencies"), "change", "System calls", run.changes);
  latency(at("latencies"), "end", "Ends", run.ends);
  sizes();
  sites();
  threads();
  slowest();
  unseen();
  numbers();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((draw) => draw()));
  document.documentElement.dataset.drawn = "true";
})();
