// Run exported models in onnxruntime-node or -web: node onnx_consumers_worker.mjs FOLDER PACKAGE_FOLDER
// FOLDER/models.json names each model's inputs and outputs, whose values lie in raw files beside it.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import path from "node:path";

const [folder, packages] = process.argv.slice(2);
const require = createRequire(path.join(packages, "package.json"));
const types = { float32: Float32Array, int64: BigInt64Array };

function values(entry) {
  const bytes = readFileSync(path.join(folder, entry.file));
  return new types[entry.dtype](bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

function difference(expected, found) {
  let most = 0;
  let largest = 0;
  expected.forEach((value, i) => {
    largest = Math.max(largest, Math.abs(value));
    most = Math.max(most, Math.abs(value - found[i]));
  });
  return expected.length === found.length ? most / largest : Infinity;
}

async function outcome(ort, model) {
  try {
    const session = await ort.InferenceSession.create(path.join(folder, model.file));
    const feeds = {};
    for (const [name, entry] of Object.entries(model.inputs)) {
      feeds[name] = new ort.Tensor(entry.dtype, values(entry), entry.shape);
    }
    const results = await session.run(feeds);
    return Math.max(...Object.entries(model.outputs).map(([n, e]) => difference(values(e), results[n].data)));
  } catch (error) {
    return String(error.message).split("\n")[0].slice(0, 300);
  }
}

const models = JSON.parse(readFileSync(path.join(folder, "models.json")));
const results = {};
for (const name of ["onnxruntime-node", "onnxruntime-web"]) {
  let ort;
  try {
    ort = require(name);
  } catch {
    continue;
  }
  const version = JSON.parse(readFileSync(path.join(packages, "node_modules", name, "package.json"))).version;
  const rows = {};
  for (const [title, model] of Object.entries(models)) rows[title] = await outcome(ort, model);
  results[name] = { version, models: rows };
}
console.log(JSON.stringify(results));
