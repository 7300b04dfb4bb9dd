// Signs drawn by hand: a board of the data set `trail`, on which a visitor draws signs of their own in place of its.
// What is drawn becomes an 8 x 8 scan, spread over a tile, as lrkit/data/scans.py and board.py draw their scans.

const ROWS = 2, COLUMNS = 5, TILE = 16, SCAN = 8, SPAN = 14; // a sign has SCAN x SCAN values, over SPAN of a tile's pixels
const FINE = 64; // pixels of a tile while it is drawn on
const PEN = 9;

// How a hand writes each digit: strokes of points, in eighths of a tile. For who types signs.
const WRITTEN = [
  "4,1 2,3 2,5 4,7 6,5 6,3 4,1", "4,1 4,7", "2,2 4,1 6,2 6,3 2,7 6,7", "2,1 5,1 6,3 4,4 6,5 5,7 2,7", "5,1 2,5 7,5|5,3 5,7",
  "6,1 2,1 2,4 5,3 6,5 5,7 2,7", "5,1 3,3 2,5 3,7 5,7 6,6 5,4 3,5", "2,1 6,1 4,4 3,7", "4,4 2,3 3,1 5,1 6,3 2,5 3,7 5,7 6,5 4,4",
  "6,3 4,4 2,3 3,1 5,1 6,3 5,7",
].map((digit) => digit.split("|").map((stroke) => stroke.split(" ").map((point) => point.split(",").map((side) => side / 8))));

/** The tint that tells a room, red, green and blue from 0 to 1. */
const tint = (room) => [0.35 * Math.floor(room / COLUMNS), 0.05, 0.2 * (room % COLUMNS)];

/** A fine pixel of size `scale` that begins at `start` covers one value of the scan or two: [which, how much of it]. */
function shares(start, scale) {
  const first = Math.max(0, Math.floor(start + 1e-6));
  const inside = Math.min(scale, first + 1 - start);
  return first + 1 < SCAN && inside < scale ? [[first, inside], [first + 1, scale - inside]] : [[Math.min(first, SCAN - 1), scale]];
}

/** What is drawn in a FINE x FINE tile (alpha of RGBA bytes) as SCAN x SCAN ink from 0 to 1, as large as scans are; null: nothing. */
export function scanOf(pixels) {
  const inked = (x, y) => pixels[4 * (y * FINE + x) + 3] / 255;
  let [left, top, right, bottom] = [FINE, FINE, -1, -1];
  for (let y = 0; y < FINE; y++) {
    for (let x = 0; x < FINE; x++) {
      if (inked(x, y) < 0.5) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x), Math.max(bottom, y)];
    }
  }
  if (right < 0) return null;
  const scale = SCAN / Math.max(bottom - top + 1, right - left + 1, FINE / 4); // a dot stays a dot
  const [middleX, middleY] = [(left + right + 1) / 2, (top + bottom + 1) / 2];
  const [down, across] = [middleY, middleX].map((middle) => (place) => shares((place - middle) * scale + SCAN / 2, scale));
  const scan = new Float32Array(SCAN * SCAN);
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      for (const [row, high] of down(y)) for (const [column, wide] of across(x)) scan[row * SCAN + column] += inked(x, y) * high * wide;
    }
  }
  return scan.map((ink) => Math.min(1, ink));
}

/** A scan in white ink on the tint of its room: RGBA bytes of a tile. */
export function tileOf(scan, room) {
  const at = (row, column) => (row < 0 || column < 0 || row >= SCAN || column >= SCAN || !scan ? 0 : scan[row * SCAN + column]);
  const tile = new Uint8ClampedArray(4 * TILE * TILE);
  for (let i = 0; i < TILE * TILE; i++) {
    const [y, x] = [Math.floor(i / TILE), i % TILE].map((place) => ((place + 0.5 - TILE / 2) * SCAN) / SPAN + (SCAN - 1) / 2);
    const [row, column] = [Math.floor(y), Math.floor(x)];
    const [down, across] = [y - row, x - column];
    const upper = at(row, column) * (1 - across) + at(row, column + 1) * across;
    const lower = at(row + 1, column) * (1 - across) + at(row + 1, column + 1) * across;
    const ink = upper * (1 - down) + lower * down;
    tint(room).forEach((paper, channel) => (tile[4 * i + channel] = 255 * (paper + ink * (1 - paper))));
    tile[4 * i + 3] = 255;
  }
  return tile;
}

const element = (tag, given, ...inside) => {
  const made = Object.assign(document.createElement(tag), given);
  made.append(...inside);
  return made;
};

/** Puts a button beside the boards; `take` gets the picture and a question when it is drawn. */
export function offerPad(row, { url, question }, take) {
  const button = element("button", { type: "button", className: "board", textContent: "draw signs by hand" });
  button.onclick = async () => {
    const board = await createImageBitmap(await (await fetch(url)).blob());
    row.after(pad(board, (file) => take(file, question), () => button.focus()));
    document.querySelector("#pad canvas").focus();
  };
  row.append(button);
}

function pad(board, take, leave) {
  document.querySelector("#pad")?.remove();
  const shown = element("canvas", { width: board.width, height: board.height, tabIndex: 0, className: "pad" });
  const fine = new OffscreenCanvas(COLUMNS * FINE, ROWS * FINE).getContext("2d", { willReadFrequently: true });
  const context = shown.getContext("2d");
  const told = element("p", { className: "note", textContent: TOLD });
  told.setAttribute("role", "status");
  shown.setAttribute("role", "application");
  shown.setAttribute("aria-label", `Board of ${ROWS * COLUMNS} rooms. Arrow keys choose a room, a digit hangs its sign there.`);
  Object.assign(fine, { lineWidth: PEN, lineCap: "round", lineJoin: "round" });
  context.drawImage(board, 0, 0);
  const changed = new Set();
  const corner = (room) => [(room % COLUMNS) * FINE, Math.floor(room / COLUMNS) * FINE];
  const wipe = (room) => (changed.add(room), fine.clearRect(...corner(room), FINE, FINE), paint(room));
  function paint(room) {
    const scan = scanOf(fine.getImageData(...corner(room), FINE, FINE).data);
    const [x, y] = corner(room).map((side) => (side / FINE) * TILE);
    context.putImageData(new ImageData(tileOf(scan, room), TILE, TILE), x, y);
  }
  function write(strokes, [left, top]) {
    for (const points of strokes) {
      fine.beginPath();
      for (const [x, y] of points) fine.lineTo(left + x * FINE, top + y * FINE);
      fine.stroke();
    }
  }
  const place = (event) => {
    const { left, top, width, height } = shown.getBoundingClientRect();
    const [x, y] = [((event.clientX - left) / width) * COLUMNS * FINE, ((event.clientY - top) / height) * ROWS * FINE];
    return [x, y, Math.min(COLUMNS - 1, Math.floor(x / FINE)) + COLUMNS * Math.min(ROWS - 1, Math.floor(y / FINE))];
  };
  let pen = null; // [x, y, room] of the last point; a stroke stays in the room where it began
  shown.onpointerdown = (event) => {
    pen = place(event);
    shown.setPointerCapture(event.pointerId);
    if (!changed.has(pen[2])) wipe(pen[2]);
    shown.onpointermove(event);
  };
  shown.onpointermove = (event) => {
    if (!pen) return;
    const [x, y] = place(event);
    fine.save();
    fine.beginPath();
    fine.rect(...corner(pen[2]), FINE, FINE);
    fine.clip();
    fine.beginPath();
    fine.moveTo(pen[0], pen[1]);
    fine.lineTo(x, y);
    fine.stroke();
    fine.restore();
    pen = [x, y, pen[2]];
    paint(pen[2]);
  };
  shown.onpointerup = shown.onpointercancel = () => (pen = null);
  let chosen = 0;
  shown.onkeydown = (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -COLUMNS, ArrowDown: COLUMNS };
    if (event.key in moves) chosen = (chosen + moves[event.key] + ROWS * COLUMNS) % (ROWS * COLUMNS);
    else if (/^\d$/.test(event.key)) {
      wipe(chosen);
      write(WRITTEN[event.key], corner(chosen));
      paint(chosen);
    } else return;
    event.preventDefault();
    told.textContent = /^\d$/.test(event.key) ? `Room ${chosen}: the sign says ${event.key}.` : `Room ${chosen}.`;
  };
  const done = element("button", { type: "button", textContent: "Take this board" });
  const empty = element("button", { type: "button", textContent: "Wipe all signs" });
  const stop = element("button", { type: "button", textContent: "Leave" });
  const box = element("div", { id: "pad" }, told, shown, element("div", { className: "row" }, done, empty, stop));
  empty.onclick = () => [...Array(ROWS * COLUMNS).keys()].forEach(wipe);
  stop.onclick = () => (box.remove(), leave());
  done.onclick = () =>
    shown.toBlob((blob) => (box.remove(), take(new File([blob], "board drawn by hand", { type: "image/png" }))), "image/png");
  return box;
}

const TOLD =
  "Draw a digit in a room: it is the room that one hops to from there. The first stroke takes the old sign away.";
