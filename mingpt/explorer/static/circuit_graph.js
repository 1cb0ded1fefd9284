// The picture of a circuit: from the embedding at the top down to the logits at the bottom; a row for each layer, heads
// to the left and its MLP to the right. A line is as wide as its edge's score is large.
//
//   const graph = circuitGraph(box, {
//     edges: [{sender, reader, score}],    // all that may be shown, the largest first
//     onPoint(number) {},                  // the mouse came to this edge, or with null left it
//     onEnter(number) {},                  // a click on it
//   });
//   graph.show(number => "in")             // of each edge: "in", "out" (faint), or "" (not drawn)
//   graph.point(number)                    // make this edge stand out; null: none

const ROW = 64, SIDE = 56, TOP = 24; // from a layer to the next; at the left, for the layers' names; above
const NARROW = 50, WIDE = 120; // from a head to the next, as there is room
const WIDTH = 44, HEIGHT = 28; // of a node
const PORTS = { q: -12, k: 0, v: 12 }; // where a head's readers are, from its middle
const WIDEST = 7;

function draw(parent, tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return parent.appendChild(element);
}

const nodeOf = reader => reader.replace(/\.[qkv]$/, "");
const roleOf = reader => /\.([qkv])$/.exec(reader)?.[1];
const ascending = (a, b) => a - b;

// {node: [x, y]} of the nodes that edges meet, rows and columns only as far as there are such nodes.
function place(edges, room) {
  const nodes = new Set(edges.flatMap(({ sender, reader }) => [sender, nodeOf(reader)]));
  const layers = new Set(), heads = new Set();
  for (const node of nodes) {
    const [, layer, head] = /^(?:mlp )?(\d+)(?:\.(\d+))?$/.exec(node) ?? [];
    if (layer) layers.add(Number(layer));
    if (head) heads.add(Number(head));
  }
  const rows = [...layers].sort(ascending), columns = [...heads].sort(ascending);
  const pitch = Math.max(NARROW, Math.min(WIDE, (room - SIDE) / (columns.length + 1.3)));
  const middle = SIDE + pitch * columns.length / 2, places = new Map([["embed", [middle, TOP]]]);
  rows.forEach((layer, row) => {
    const y = TOP + ROW * (row + .85);
    columns.forEach((head, column) => places.set(`${layer}.${head}`, [SIDE + pitch * (column + .5), y]));
    // It reads the heads beside it, so it stands a little below them.
    places.set(`mlp ${layer}`, [SIDE + pitch * (columns.length + .6), y + ROW / 2]);
  });
  places.set("logits", [middle, TOP + ROW * (rows.length + .75)]);
  const width = SIDE + pitch * (columns.length + 1.3), height = places.get("logits")[1] + HEIGHT;
  return { nodes, rows, places, width, height };
}

// From below the sender to above the reader. Where others stand between them in one column, around these.
function route([x, y], [toX, toY], role) {
  const startY = y + HEIGHT / 2, endY = toY - HEIGHT / 2, down = Math.max(10, (endY - startY) * .45);
  const endX = toX + (PORTS[role] ?? 0);
  const isPast = x === toX && endY - startY > ROW;
  const aside = isPast ? Math.min(70, 30 + (endY - startY) / 12) * (role ? -1 : 1) : 0;
  return `M${x},${startY} C${x + aside},${startY + down} ${endX + aside},${endY - down} ${endX},${endY}`;
}

export function circuitGraph(box, { edges, onPoint, onEnter }) {
  const { nodes, rows, places, width, height } = place(edges, box.clientWidth);
  const svg = draw(box, "svg", {
    width, height, role: "img", class: "graph",
    "aria-label": "The circuit, from the embedding down to the logits. The list has the same edges.",
  });
  for (const layer of rows) {
    const [, y] = places.get(`mlp ${layer}`);
    draw(svg, "text", { x: 0, y: y - ROW / 2, class: "layer" }, `layer ${layer}`);
  }
  const largest = Math.abs(edges[0]?.score) || 1;
  const lines = [];
  // The largest last, on top of the others.
  for (let i = edges.length - 1; i >= 0; i--) lines[i] = drawEdge(edges[i], i);
  const boxes = new Map();
  for (const [node, at] of places) if (nodes.has(node)) boxes.set(node, drawNode(node, at));

  function drawEdge({ sender, reader, score }, i) {
    const group = draw(svg, "g", { class: "edge" });
    const d = route(places.get(sender), places.get(nodeOf(reader)), roleOf(reader));
    const line = draw(group, "path", { d, class: score < 0 ? "line against" : "line" });
    line.style.strokeWidth = 1 + (WIDEST - 1) * Math.abs(score) / largest;
    draw(group, "path", { d, class: "hit" }); // wide enough for a mouse
    group.dataset.edge = i;
    return group;
  }

  function drawNode(node, [x, y]) {
    const group = draw(svg, "g", { class: "node" });
    const isHead = node.includes("."), wide = isHead ? WIDTH : WIDTH + 8;
    draw(group, "rect", { x: x - wide / 2, y: y - HEIGHT / 2, width: wide, height: HEIGHT, rx: 5 });
    if (isHead)
      for (const role in PORTS) draw(group, "text", { x: x + PORTS[role], y: y - 7, class: "port" }, role);
    draw(group, "text", { x, y: isHead ? y + 6 : y }, node);
    return group;
  }

  const numberOf = event => {
    const group = event.target.closest(".edge");
    return group ? Number(group.dataset.edge) : null;
  };
  svg.addEventListener("pointerover", event => onPoint(numberOf(event)));
  svg.addEventListener("pointerleave", () => onPoint(null));
  svg.addEventListener("click", event => {
    const number = numberOf(event);
    if (number !== null) onEnter(number);
  });

  let pointed = null;
  function point(number) {
    lines[pointed]?.classList.remove("pointed");
    lines[number]?.classList.add("pointed");
    pointed = number;
  }

  function show(stateOf) {
    const used = new Set();
    edges.forEach(({ sender, reader }, i) => {
      const shown = stateOf(i);
      lines[i].style.display = shown ? "" : "none";
      lines[i].classList.toggle("out", shown === "out");
      if (shown === "in") used.add(sender).add(nodeOf(reader));
    });
    for (const [node, group] of boxes) group.classList.toggle("unused", !used.has(node));
  }
  return { show, point };
}
