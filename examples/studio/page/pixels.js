// Sizes and copies of pictures; knows nothing of the page.

const MIN_SIDE_PX = 64; // of a request

export const canvasOf = (width, height) =>
  Object.assign(document.createElement("canvas"), { width, height });

export const blobOf = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));

/** Width and height, multiples of 8, of a picture whose longest side is `side`. */
export function sizeFor({ width, height }, side) {
  const scale = side / Math.max(width, height);
  const fit = (each) => Math.max(MIN_SIDE_PX, 8 * Math.round((each * scale) / 8));
  return [fit(width), fit(height)];
}

/** The middle of a picture, which fills a size without distortion. */
export function middle(source, width, height) {
  const scale = Math.max(width / source.width, height / source.height);
  const [w, h] = [width / scale, height / scale];
  return { x: (source.width - w) / 2, y: (source.height - h) / 2, width: w, height: h };
}

/** A part of a picture at a size, on white where it is transparent. */
export function filledWith(source, part, width, height) {
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, part.x, part.y, part.width, part.height, 0, 0, width, height);
  return canvas;
}

/** White where a mask of a task is white, transparent where it is black. */
export function transparent(image) {
  const canvas = canvasOf(image.width, image.height);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let place = 0; place < pixels.data.length; place += 4) {
    pixels.data[place + 3] = pixels.data[place];
    pixels.data.fill(255, place, place + 3);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
