// Run the page's executor in Node: node run_programs.js TEMPLATE < lines of JSON > lines of JSON
//
//   {"file": path, "q": [[...]]}      quantized values (H, W, C) of images -> {"values": [[...]], "logits": [[...]]}
//   {"file": path, "images": [{rgba, width, height}]}                      -> {"q": [[...]]}
// A file that is refused gives {"error": text}, any other failure ends the process.
const fs = require("fs");
const vm = require("vm");

const sources = ["program.js", "preprocessing.js", "executor.js"].map((name) => fs.readFileSync(`${process.argv[2]}/${name}`, "utf8"));
vm.runInThisContext(`${sources.join("\n")}\nObject.assign(globalThis, { read, Preprocessing, Executor, FileError });`);

function answer({ file, q, images }) {
  const program = read(new Uint8Array(fs.readFileSync(file)));
  if (images) {
    const preprocessing = new Preprocessing(program);
    return { q: images.map(({ rgba, width, height }) => [...preprocessing.ofImage(rgba, width, height).q]) };
  }
  const executor = new Executor(program);
  const found = q.map((values) => executor.run(Uint8Array.from(values)));
  return { values: found.map(({ values }) => values.flatMap((value) => [...value])), logits: found.map(({ logits }) => [...logits]) };
}

for (const line of fs.readFileSync(0, "utf8").trim().split("\n")) {
  let found;
  try {
    found = answer(JSON.parse(line));
  } catch (error) {
    if (!(error instanceof FileError)) throw error;
    found = { error: error.message };
  }
  console.log(JSON.stringify(found));
}
