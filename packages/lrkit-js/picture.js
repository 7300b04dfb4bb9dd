// Pictures as the program reads them. A picture is { data, width, height }: RGBA bytes row by row, as a canvas gives them.

// As Python's: a half goes to the even neighbour, so that both read a picture at the same size.
const round = (value) => (Math.abs(value % 1) === 0.5 ? 2 * Math.round(value / 2) : Math.round(value));

/**
 * The size at which the model reads a picture: sides that are multiples of a visual token's, within the limits.
 * Whoever holds the picture scales it; how pixels are mixed there is theirs, so answers can differ a little from Python's.
 */
export function fit(width, height, image) {
  const side = image.patch_size * image.merge_size;
  const { shortest_edge: least, longest_edge: most } = image.size;
  const sized = (scale, how) => [width, height].map((edge) => Math.max(side, how((edge * scale) / side) * side));
  const [wide, high] = sized(1, round);
  if (wide * high > most) return sized(Math.sqrt(most / (width * height)), Math.floor);
  if (wide * high < least) return sized(Math.sqrt(least / (width * height)), Math.ceil);
  return [wide, high];
}

/**
 * Patches in the order of the spatial merge: squares of merge x merge patches, row by row. Each holds the bytes of the
 * picture by channel, row, column.
 * @throws Error where the picture has another size than `fit` says, or is transparent in places.
 */
export function patchify({ data, width, height }, image) {
  const { patch_size: patch, merge_size: merge } = image;
  const [wide, high] = fit(width, height, image);
  if (wide !== width || high !== height) {
    throw new Error(`the picture has ${width} x ${height} pixels, and the model reads it at ${wide} x ${high}; scale it first`);
  }
  const [rows, columns] = [height / patch, width / patch];
  const values = new Uint8Array(rows * columns * 3 * patch * patch);
  const positions = [];
  let next = 0;
  for (let i = 0; i < rows * columns; i++) {
    const square = Math.floor(i / (merge * merge));
    const row = Math.floor(square / (columns / merge)) * merge + Math.floor((i % (merge * merge)) / merge);
    const column = (square % (columns / merge)) * merge + (i % merge);
    positions.push(row, column);
    for (let channel = 0; channel < 3; channel++) {
      for (let y = 0; y < patch; y++) {
        for (let x = 0; x < patch; x++) {
          const pixel = 4 * ((row * patch + y) * width + column * patch + x);
          if (data[pixel + 3] !== 255) throw new Error("the picture is transparent in places; lay it on white first");
          values[next++] = data[pixel + channel];
        }
      }
    }
  }
  return { values, positions, count: rows * columns, rows: rows / merge, columns: columns / merge };
}

/** The box [left, top, right, bottom] of a visual token, in pixels of a picture of width x height. */
export function regionOf(token, { rows, columns }, width, height) {
  const [row, column] = [Math.floor(token / columns), token % columns];
  const [wide, high] = [width / columns, height / rows];
  return [column * wide, row * high, (column + 1) * wide, (row + 1) * high];
}
