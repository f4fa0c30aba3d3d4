// Preprocessing in a browser, bit-identical to deploy/preprocess.py: Pillow's integer resampling and conversion to
// grey, centre crop, normalisation in float32. The browser decodes the images; `checksum` shows whether its pixels
// equal Pillow's.

// [support, weight at x] of each filter (Pillow's Resample.c)
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => (Math.abs(x) < 1 ? 1 - Math.abs(x) : 0)],
  hamming: [1, (x) => {
    if (x === 0) return 1;
    if (Math.abs(x) >= 1) return 0;
    const angle = Math.PI * Math.abs(x);
    return (Math.sin(angle) / angle) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(angle)); // float32 in C
  }],
  bicubic: [2, (value) => {
    const a = -0.5, x = Math.abs(value);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

// Weights are integers, in units of 2 ** -22.
const BITS = 22;

/** Decode an image file: {width, height, channels, data: Uint8 [height, width, channels]} in `mode`, RGB or L. */
export async function decode(bytes, mode) {
  const bitmap = await createImageBitmap(new Blob([bytes]), {
    colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image",
  });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const channels = mode === "RGB" ? 3 : 1;
  const data = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const r = rgba[from], g = rgba[from + 1], b = rgba[from + 2];
    if (channels === 3) {
      data[to++] = r;
      data[to++] = g;
      data[to++] = b;
    } else {
      data[to++] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16; // ITU-R 601-2 luma, as Pillow rounds it
    }
  }
  return { width, height, channels, data };
}

/** CRC-32 of an image's size and pixels, as Preprocess.checksum. */
export function checksum(image) {
  let crc = -1;
  const add = (byte) => { crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8); };
  for (const letter of `${image.width}x${image.height}`) add(letter.charCodeAt(0));
  for (const byte of image.data) add(byte);
  return ~crc >>> 0;
}
const TABLE = Int32Array.from({ length: 256 }, (_, number) => {
  for (let bit = 0; bit < 8; bit++) number = number & 1 ? (number >>> 1) ^ 0xedb88320 : number >>> 1;
  return number;
});

/** A decoded image as [channels, height, width]: Float32, or Uint8 if the network itself normalizes. */
export function preprocess(image, settings) {
  let result = image;
  if (settings.resize !== null) {
    const [width, height] = resized(image, settings.resize);
    if (width !== image.width || height !== image.height) {
      result = settings.interpolation === "nearest" ? nearest(image, width, height)
        : resample(image, width, height, FILTERS[settings.interpolation], settings.height_first);
    }
  }
  if (settings.crop !== null) result = centreCrop(result, ...settings.crop);
  return settings.dtype === "uint8" ? planes(result) : normalize(result, settings.mean, settings.std);
}

function resized({ width, height }, resize) {
  if (Array.isArray(resize)) return [resize[1], resize[0]];
  return width <= height ? [resize, Math.trunc((resize * height) / width)] : [Math.trunc((resize * width) / height), resize];
}

/**
 * Two passes, each rounded to 8 bits: first horizontal, then vertical. From Pillow 13 (its pull request 9549) the order
 * is reversed if the height shrinks by more than twice as many pixels as the width.
 */
function resample(image, width, height, filter, heightFirst) {
  const horizontal = (from) => (width === from.width ? from : pass(from, width, from.height, weights(from.width, width, filter), true));
  const vertical = (from) => (height === from.height ? from : pass(from, from.width, height, weights(from.height, height, filter), false));
  const tall = height < image.height && image.height - height > 2 * (image.width - width);
  return heightFirst && tall ? horizontal(vertical(image)) : vertical(horizontal(image));
}

/** For each output position: the first contributing input position, and the weights from there on. */
function weights(from, to, [support, at]) {
  const scale = from / to, wide = Math.max(scale, 1), reach = support * wide;
  return Array.from({ length: to }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const exact = Array.from({ length: end - begin }, (_, x) => at((x + begin - centre + 0.5) * (1 / wide)));
    const sum = exact.reduce((total, value) => total + value, 0);
    const integers = exact.map((value) => {
      const share = (sum === 0 ? value : value / sum) * (1 << BITS);
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    return [begin, Int32Array.from(integers)];
  });
}

function pass(image, width, height, table, horizontal) {
  const { channels, data } = image;
  const step = horizontal ? channels : image.width * channels;
  const result = new Uint8Array(width * height * channels);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [begin, factors] = table[horizontal ? x : y];
      const start = horizontal ? (y * image.width + begin) * channels : (begin * image.width + x) * channels;
      for (let channel = 0; channel < channels; channel++) {
        let sum = 1 << (BITS - 1);
        for (let tap = 0; tap < factors.length; tap++) sum += data[start + tap * step + channel] * factors[tap];
        result[to++] = Math.min(255, Math.max(0, Math.floor(sum / (1 << BITS))));
      }
    }
  }
  return { width, height, channels, data: result };
}

/** Pillow's affine scaling: input positions are accumulated step by step. */
function nearest(image, width, height) {
  const { channels, data } = image;
  const positions = (from, to) => {
    const indices = new Int32Array(to), step = from / to;
    for (let index = 0, position = step * 0.5; index < to; index++, position += step) {
      indices[index] = Math.min(from - 1, Math.floor(position));
    }
    return indices;
  };
  const columns = positions(image.width, width), rows = positions(image.height, height);
  const result = new Uint8Array(width * height * channels);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      for (let channel = 0; channel < channels; channel++) result[to++] = data[(row * image.width + column) * channels + channel];
    }
  }
  return { width, height, channels, data: result };
}

/** torchvision's CenterCrop: smaller images are first padded with zeros; halves round to even. */
function centreCrop(image, height, width) {
  let padLeft = 0, padTop = 0, padRight = 0, padBottom = 0;
  if (width > image.width || height > image.height) {
    padLeft = Math.max(0, Math.floor((width - image.width) / 2));
    padTop = Math.max(0, Math.floor((height - image.height) / 2));
    padRight = Math.max(0, Math.floor((width - image.width + 1) / 2));
    padBottom = Math.max(0, Math.floor((height - image.height + 1) / 2));
  }
  const top = roundHalfEven((image.height + padTop + padBottom - height) / 2) - padTop;
  const left = roundHalfEven((image.width + padLeft + padRight - width) / 2) - padLeft;
  const { channels, data } = image;
  const result = new Uint8Array(width * height * channels);
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y++) {
    for (let x = Math.max(0, -left); x < Math.min(width, image.width - left); x++) {
      for (let channel = 0; channel < channels; channel++) {
        result[(y * width + x) * channels + channel] = data[((y + top) * image.width + x + left) * channels + channel];
      }
    }
  }
  return { width, height, channels, data: result };
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  return value - floor !== 0.5 ? Math.round(value) : floor + (floor & 1 ? 1 : 0);
}

function planes({ width, height, channels, data }) {
  const size = width * height;
  return Uint8Array.from({ length: channels * size }, (_, at) => data[(at % size) * channels + Math.trunc(at / size)]);
}

function normalize({ width, height, channels, data }, mean, std) {
  const size = width * height, result = new Float32Array(channels * size);
  for (let channel = 0; channel < channels; channel++) {
    const middle = Math.fround(mean[channel]), spread = Math.fround(std[channel]);
    for (let index = 0; index < size; index++) {
      const share = Math.fround(data[index * channels + channel] / 255);
      result[channel * size + index] = Math.fround(share - middle) / spread;
    }
  }
  return result;
}
