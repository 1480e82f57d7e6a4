// Classifies a picture with network.onnx, as its metadata say.

const seen = document.getElementById("seen");
const status = document.getElementById("status");

// ONNX Runtime Web does not give the metadata of a file. Its JSON lies in the file as it is.
function descriptionIn(bytes) {
  const text = new TextDecoder().decode(bytes);
  const start = text.lastIndexOf('{"pixels"');
  for (let end = text.indexOf("}", start); start >= 0 && end > 0; end = text.indexOf("}", end + 1)) {
    try {
      return JSON.parse(text.slice(start, end + 1));
    } catch {
      // this brace closes an inner object
    }
  }
  throw new Error("network.onnx was not written by mnv2.export");
}

// Draws the centre of a picture, scaled to the network's size, and returns its pixels, 0 to 255.
function pixelsOf(picture, [height, width], channels) {
  seen.width = width;
  seen.height = height;
  const context = seen.getContext("2d", { willReadFrequently: true });
  const scale = Math.max(width / picture.width, height / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
  const rgba = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(height * width * channels);
  for (let i = 0; i < height * width; i++) {
    const [r, g, b] = rgba.slice(4 * i, 4 * i + 3);
    if (channels === 1) pixels[i] = Math.round(0.299 * r + 0.587 * g + 0.114 * b);
    else pixels.set([r, g, b], 3 * i);
  }
  return pixels;
}

function show(probabilities, names, milliseconds) {
  const best = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const rows = best.slice(0, 3).map((i) => {
    const row = document.createElement("tr");
    const share = document.createElement("meter");
    share.value = probabilities[i];
    const percent = `${(100 * probabilities[i]).toFixed(1)} %`;
    for (const content of [names?.[i] ?? `class ${i}`, percent, share]) {
      row.insertCell().append(content);
    }
    return row;
  });
  document.getElementById("answers").replaceChildren(...rows);
  status.textContent = `${milliseconds.toFixed(1)} ms`;
}

async function classify(session, description, blob) {
  const { image_size: size, channels, class_names: names } = description;
  const pixels = pixelsOf(await createImageBitmap(blob), size, channels);
  const image = new ort.Tensor("uint8", pixels, [1, ...size, channels]);
  const began = performance.now();
  const { probabilities } = await session.run({ image });
  show(probabilities.data, names, performance.now() - began);
}

try {
  ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", document.baseURI).href;
  const bytes = new Uint8Array(await (await fetch("network.onnx")).arrayBuffer());
  const description = descriptionIn(bytes);
  const session = await ort.InferenceSession.create(bytes);
  document.getElementById("file").onchange = ({ target }) =>
    classify(session, description, target.files[0]).catch((error) => {
      status.textContent = error.message;
    });
  await classify(session, description, await (await fetch("example.png")).blob());
} catch (error) {
  status.textContent = error.message;
}
