"use strict";
// Draws the page from the JSON in it. Text from captures is only set as text (textContent); for Plotly, which reads
// some tags, `plain` escapes it.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PAGE = 50;
  const LABEL = 40;
  const PAPER = 700;  // width of a chart on paper
  // Of the palette "category20" of D3: as many as the timeline has series.
  const COLORS = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#aec7e8", "#ffbb78", "#98df8a"];

  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (text) => plain(text.length > LABEL ? `${text.slice(0, LABEL - 3)}...` : text);
  const number = (value) => value === null || value === undefined ? "" : value.toLocaleString("en");
  const clear = (iso) => iso.replace("T", " ").slice(0, 23);  // milliseconds; `top` has nanoseconds
  const time = (ms) => {  // also one outside of the calendar
    const date = new Date(ms ?? NaN);
    return Number.isNaN(date.getTime()) ? (ms === null ? "" : `${ms / 1000} s`) : clear(date.toISOString());
  };

  // A table that can be sorted by each column, searched, and turned page by page.
  // columns: [heading, function from a row to its value, whether it is a number]
  function table(place, caption, columns, rows) {
    const box = document.getElementById(place);
    const heading = document.createElement("h3");
    heading.textContent = `${caption} (${number(rows.length)})`;
    heading.id = `${place}-caption`;
    box.append(heading);
    if (!rows.length) return;
    let shown = rows, at = 0, by = -1, isDown = true;
    const controls = document.createElement("div");
    controls.className = "pages";
    const search = document.createElement("input");
    search.type = "search";
    search.placeholder = "search";
    search.setAttribute("aria-label", `Search in ${caption}`);
    const before = document.createElement("button"), after = document.createElement("button");
    before.textContent = "previous";
    after.textContent = "next";
    const where = document.createElement("span");
    where.setAttribute("role", "status");
    controls.append(search, " ", before, " ", after, " ", where);
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-labelledby", heading.id);
    const element = document.createElement("table");
    const head = element.createTHead().insertRow(), body = element.createTBody();
    scroll.append(element);
    const cells = columns.map(([title, , isNumber], column) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      if (isNumber) cell.className = "number";
      const button = document.createElement("button");
      button.textContent = title;
      button.onclick = () => {
        isDown = by === column ? !isDown : Boolean(isNumber);
        by = column;
        at = 0;
        draw();
      };
      cell.append(button);
      head.append(cell);
      return cell;
    });
    const value = (row, column) => columns[column][1](row);
    function draw() {
      const words = search.value.toLowerCase();
      shown = rows.filter((row) => columns.some((_, column) => String(value(row, column) ?? "").toLowerCase().includes(words)));
      if (by >= 0) {
        const order = (one, two) => {
          const [a, b] = [value(one, by), value(two, by)];
          if (typeof a === "number" && typeof b === "number") return a - b;
          return String(a ?? "").localeCompare(String(b ?? ""));
        };
        shown.sort((one, two) => isDown ? order(two, one) : order(one, two));
      }
      cells.forEach((cell, column) => {
        if (column === by) cell.setAttribute("aria-sort", isDown ? "descending" : "ascending");
        else cell.removeAttribute("aria-sort");
      });
      const part = shown.slice(at, at + PAGE);
      body.replaceChildren(...part.map((row) => {
        const line = document.createElement("tr");
        columns.forEach(([, , isNumber], column) => {
          const cell = line.insertCell(), found = value(row, column);
          if (isNumber) cell.className = "number";
          cell.textContent = isNumber && typeof found === "number" ? number(found) : found ?? "";
        });
        return line;
      }));
      where.textContent = shown.length ? `${at + 1} to ${at + part.length} of ${number(shown.length)}` : "none found";
      before.disabled = at === 0;
      after.disabled = at + PAGE >= shown.length;
    }
    search.oninput = () => { at = 0; draw(); };
    before.onclick = () => { at = Math.max(0, at - PAGE); draw(); };
    after.onclick = () => { at += PAGE; draw(); };
    if (rows.length > 10) box.append(controls);
    box.append(scroll);
    draw();
  }

  const column = (title, key, isNumber) => [title, (row) => row[key], isNumber];
  const moment = (title, key) => [title, (row) => time(row[key])];

  function layout(more) {
    const isDark = dark.matches;
    const text = isDark ? "#ececec" : "#1a1a1a", line = isDark ? "#4a4d52" : "#c8c8c8";
    const axis = { gridcolor: line, zerolinecolor: line, automargin: true };
    const { xaxis = {}, yaxis = {}, ...others } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 13 },
      margin: { l: 60, r: 40, t: 10, b: 50 }, legend: { orientation: "h", y: -0.25, traceorder: "normal" },
      colorway: COLORS,
      modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: isDark ? "#b0b0b0" : "#595959", activecolor: text },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...others,
    };
  }

  function chart(place, traces, more) {
    const box = document.getElementById(place);
    if (!traces.length) {
      box.classList.add("empty");
      return;
    }
    // The buttons are always there: with a keyboard nothing hovers. Others, which Plotly may have, could upload data.
    const config = { responsive: true, displaylogo: false, displayModeBar: true, plotlyServerURL: "",
      modeBarButtons: [...(place === "flow" ? [] : [["zoomIn2d", "zoomOut2d", "zoom2d", "pan2d", "resetScale2d"]]), ["toImage"]] };
    Plotly.react(box, traces, layout(more), config);
  }

  const high = (count) => Math.max(260, 24 * count + 90);

  function drawTimeline() {
    const unit = document.getElementById("unit").value, { begin, width, series } = data.timeline;
    const traces = series.map(({ name, [unit]: sums }) => ({
      type: "scatter", mode: "lines", stackgroup: "all", line: { width: 0.5, shape: "hv" }, name: short(name),
      x: sums.map((_, at) => new Date(begin + at * width)), y: sums.map((sum) => sum * 1000 / width),
    }));
    chart("timeline", traces, {
      height: 420, hovermode: "x unified", yaxis: { title: { text: `${unit} per second` }, tickformat: ".3s" },
      xaxis: { type: "date", title: { text: `UTC, intervals of ${number(width / 1000)} s` } },
    });
  }

  function drawBusiest() {
    const rows = data.rows.slice(0, 20).reverse();
    const bar = (name, key) => ({
      type: "bar", orientation: "h", name, x: rows.map((row) => row[key]), y: rows.map((_, at) => at),
      text: rows.map((row) => plain(row.label)), textposition: "none", hovertemplate: `%{text}<br>%{x:,} bytes<extra>${name}</extra>`,
    });
    chart("busiest", rows.length ? [bar("sent", "sent_bytes"), bar("received", "received_bytes")] : [], {
      barmode: "stack", height: high(rows.length), xaxis: { title: { text: "bytes" }, tickformat: ".3s" },
      yaxis: { tickvals: rows.map((_, at) => at), ticktext: rows.map((row) => short(row.label)) },
    });
  }

  function drawFlow() {
    const { links } = data, nodes = new Map();
    const node = (side, name) => {
      const key = `${side} ${name}`;
      if (!nodes.has(key)) nodes.set(key, { at: nodes.size, name });
      return nodes.get(key).at;
    };
    const source = links.map(({ process }) => node("process", process)), target = links.map(({ peer }) => node("peer", peer));
    chart("flow", links.length ? [{
      type: "sankey", node: { label: [...nodes.values()].map(({ name }) => short(name)), pad: 12 },
      // Plotly derives the color from the background, which is transparent here.
      link: { source, target, value: links.map(({ bytes }) => bytes), color: dark.matches ? "rgba(255,255,255,.3)" : "rgba(0,0,0,.2)" },
      valueformat: ".3s", valuesuffix: "B",
    }] : [], { height: high(nodes.size) });
  }

  function drawConnections() {
    const rows = data.connections.slice(0, 60).sort((one, two) => two.first - one.first);
    const name = ({ process, remote, name: known, protocol }) => `${process} - ${known ?? remote} ${protocol}`;
    chart("bars", rows.length ? [{
      type: "bar", orientation: "h", base: rows.map(({ first }) => new Date(first)), y: rows.map((_, at) => at),
      x: rows.map(({ first, last }) => Math.max(last - first, (data.last - data.first) / 500)),
      text: rows.map((row) => plain(name(row))), textposition: "none",
      customdata: rows.map(({ bytes, packets, last, first }) => [number(bytes), number(packets), number((last - first) / 1000)]),
      hovertemplate: "%{text}<br>%{customdata[0]} bytes, %{customdata[1]} packets, %{customdata[2]} s<extra></extra>",
    }] : [], {
      height: high(rows.length), xaxis: { type: "date", title: { text: "UTC" } }, showlegend: false,
      yaxis: { tickvals: rows.map((_, at) => at), ticktext: rows.map((row) => short(name(row))) },
    });
  }

  function drawProtocols() {
    const rows = data.protocols.slice(0, 20).reverse();
    chart("shares", rows.length ? [{
      type: "bar", orientation: "h", x: rows.map(({ bytes }) => bytes), y: rows.map(({ name }) => plain(name)),
    }] : [], { height: high(rows.length), xaxis: { title: { text: "bytes" }, tickformat: ".3s" }, yaxis: { type: "category" } });
  }

  function draw() {
    drawTimeline();
    drawBusiest();
    drawFlow();
    drawConnections();
    drawProtocols();
  }

  const what = { tgid: "processes", process: "names of processes", comm: "names of threads" }[data.by] ?? `${data.by}s`;
  document.querySelectorAll(".by").forEach((place) => { place.textContent = what; });
  document.getElementById("summary").textContent = data.packets
    ? `${number(data.packets)} packets, ${number(data.bytes)} bytes, from ${time(data.first)} to ${time(data.last)} (UTC)`
    : "No packets.";
  document.getElementById("connections-note").textContent =
    `${number(data.connections.length)} of ${number(data.connectionCount)} connections: those with most bytes.`;
  table("rows", data.more.rows ? `${what}; ${number(data.more.rows)} more with ${number(data.more.bytes)} bytes` : what, [
    ["name", (row) => row.label], column("unit", "unit"), column("packets", "packets", true), column("bytes", "bytes", true),
    column("sent bytes", "sent_bytes", true), column("received bytes", "received_bytes", true), ["first (UTC)", (row) => clear(row.first)],
    ["last (UTC)", (row) => clear(row.last)], column("peers", "peers", true), ["busiest peers", (row) => row.busiest.join(", ")],
  ], data.rows);
  const { rows: hidden, bytes: others } = data.morePairs, pairs = "pairs of process and peer";
  table("links", hidden ? `${pairs}; ${number(hidden)} more with ${number(others)} bytes` : pairs, [
    column("process", "process"), column("peer", "peer"), column("packets", "packets", true), column("bytes", "bytes", true),
  ], data.pairs);
  table("flows", "connections", [
    column("process", "process"), column("protocol", "protocol"), column("local", "local"), column("remote", "remote"),
    column("name", "name"), column("packets", "packets", true), column("bytes", "bytes", true),
    moment("first (UTC)", "first"), moment("last (UTC)", "last"),
  ], data.connections);
  table("names", "protocols",
    [column("protocol", "name"), column("packets", "packets", true), column("bytes", "bytes", true)], data.protocols);
  table("interfaces", "interfaces, with the statistics in the files", [
    column("interface", "name"), column("received", "received", true), column("matched the filter", "matched", true),
    column("dropped by the capture", "dropped", true), column("dropped by the interface", "interface", true),
    column("description", "description"), column("filter", "filter"), column("bytes kept of a frame", "snaplen", true),
    column("link type", "linkType", true), column("Ethernet address", "address"), column("bits per second", "speed", true),
    column("system", "os"),
  ], data.interfaces);
  if (data.drops.length) table("drops", "packets that the kernel dropped; not counted above", [
    column("reason", "reason"), ["somebody lost them", (row) => row.loss ? "yes" : "no"], column("packets", "packets", true),
    column("bytes", "bytes", true),
  ], data.drops);
  table("unattributed", "packets without a process", [
    column("via", "via"), column("direction", "direction"), column("protocol", "protocol"), column("cause", "why"),
    column("packets", "packets", true), column("bytes", "bytes", true),
  ], data.unattributed);
  table("settings", "this report", [column("setting", "0"), column("value", "1")], data.settings);
  table("captures", "written by", [
    column("program", "application"), column("system", "os"), column("hardware", "hardware"), moment("from (UTC)", "first"),
    moment("to (UTC)", "last"), column("comment", "comment"), column("sections", "sections", true),
  ], data.captures);
  table("errors", "files that could not be read to their end", [column("error", "0")], data.errors.map((error) => [error]));
  draw();
  document.getElementById("unit").onchange = drawTimeline;
  dark.addEventListener("change", draw);
  const zoom = (factor) => document.querySelectorAll(".chart").forEach((box) => { box.style.zoom = factor(box); });
  window.addEventListener("beforeprint", () => zoom((box) => Math.min(1, PAPER / box.clientWidth)));
  window.addEventListener("afterprint", () => zoom(() => 1));
})();
