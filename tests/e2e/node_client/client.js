// Does a teacher's and a worker's job with nothing but the proto files: node client.js PROTOS ADDRESS
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [protos, address] = process.argv.slice(2);
const definition = loader.loadSync(
  ["session", "task", "metrics", "alert"].map((area) =>
    path.join("gaia", area, "v1", `${area}.proto`),
  ),
  { includeDirs: [protos], keepCase: true, longs: Number, enums: String, defaults: true },
);
const { gaia } = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const sessions = new gaia.session.v1.SessionService(address, credentials);
const tasks = new gaia.task.v1.TaskService(address, credentials);
const metrics = new gaia.metrics.v1.MetricsService(address, credentials);
const alerts = new gaia.alert.v1.AlertService(address, credentials);

function call(stub, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 5000;
    stub[method](request, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

async function work() {
  const { session } = await call(sessions, "RegisterSession", { name: "node-worker" });
  const { task } = await call(tasks, "EnqueueTask", {
    task_type: "node-grade",
    payload: Buffer.from("essay"),
    request_id: "node-1",
  });
  const claimed = await call(tasks, "ClaimTasks", {
    session_id: session.session_id,
    max_tasks: 1,
    wait: { seconds: 5 },
    task_types: ["node-grade"],
  });
  const mine = claimed.tasks[0];
  const completed = await call(tasks, "CompleteTask", {
    task_id: mine.task_id,
    claim_token: mine.claim_token,
    session_id: session.session_id,
    result: Buffer.from("A"),
  });
  return {
    same_task: mine.task_id === task.task_id,
    payload: mine.payload.toString(),
    state: completed.task.state,
    task_id: task.task_id,
  };
}

async function refusal() {
  try {
    await call(tasks, "GetTask", { task_id: "nope" });
  } catch (error) {
    return grpc.status[error.code];
  }
  return "none";
}

function teach() {
  return new Promise((resolve, reject) => {
    const stream = alerts.SubscribeAlerts({
      filter: { classroom_id: "node-class" },
      from_now: true,
    });
    let first = true;
    stream.on("error", (error) => error.code !== grpc.status.CANCELLED && reject(error));
    stream.on("data", (message) => {
      if (first) {
        first = false;
        publish().catch(reject);
      }
      if (message.event) {
        stream.cancel();
        resolve({
          pattern: message.event.alert.pattern,
          student_id: message.event.alert.student_id,
          sequence: message.event.sequence,
          through_sequence: message.through_sequence,
        });
      }
    });
  });
}

async function publish() {
  const batch = {
    source_id: "node-app",
    source_epoch: Date.now(),
    sequence: 1,
    sent_at_ms: Date.now(),
    classroom_id: "node-class",
    student_id: "node-student",
    app_name: "math",
    metrics: Array.from({ length: 5 }, () => ({ metric_type: "error", value: 1 })),
  };
  await call(metrics, "PublishMetrics", { batches: [batch] });
}

async function main() {
  const timer = setTimeout(() => {
    console.error("no answer within 20 s");
    process.exit(1);
  }, 20000);
  const result = { work: await work(), refusal: await refusal(), alert: await teach() };
  clearTimeout(timer);
  console.log(JSON.stringify(result));
  for (const stub of [sessions, tasks, metrics, alerts]) stub.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
