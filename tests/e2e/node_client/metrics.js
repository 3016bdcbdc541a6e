// A student app: node metrics.js PROTOS ADDRESS,ADDRESS,...; goes on at each line on its input.
"use strict";

const path = require("node:path");
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const { MetricsBuffer, retryDelay } = require("./metrics_buffer.js");

const [protos, addresses] = process.argv.slice(2);
const definition = loader.loadSync(path.join("gaia", "metrics", "v1", "metrics.proto"), {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  enums: String,
  defaults: true,
});
const { MetricsService } = grpc.loadPackageDefinition(definition).gaia.metrics.v1;
const stubs = addresses
  .split(",")
  .map((address) => new MetricsService(address, grpc.credentials.createInsecure()));

const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (message) => console.log(JSON.stringify(message));

async function main() {
  const identity = {
    source_id: "node-tablet",
    student_id: "node-ben",
    app_name: "math",
    classroom_id: "node-class",
  };
  const app = new MetricsBuffer([...stubs], identity);

  // A full buffer leaves at once, the rest by the timer.
  const started = performance.now();
  for (let number = 0; number < 150; number += 1) app.record("keypress");
  const buffered = app.open.length;
  while (app.counts.acknowledged < 150) await new Promise((resolve) => setTimeout(resolve, 5));
  say({ buffered, took_ms: performance.now() - started, batches: app.sequence });

  // The same batch once more, as after an answer that was lost.
  const again = await app.publish({
    ...app.identity,
    sequence: 2,
    sent_at_ms: app.now(),
    metrics: Array.from({ length: 50 }, () => ({ metric_type: "other" })),
  }).catch((error) => ({ code: grpc.status[error.code] }));
  say({ other_content: again.code });

  await lines.next(); // the leader is dead now
  for (let number = 0; number < 30; number += 1) app.record(number % 10 ? "keypress" : "error");
  await app.flush();
  say({
    counts: app.counts,
    pending: app.pending,
    batches: app.sequence,
    attempts: [...app.attempts.values()].reduce((sum, count) => sum + count, 0),
  });
  await lines.next();
  const full = { metadata: new grpc.Metadata() };
  full.metadata.set("grpc-status-details-bin", Buffer.from((await lines.next()).value, "base64"));
  say({ retry_delay_ms: retryDelay(full) });
  for (const stub of stubs) stub.close();
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
