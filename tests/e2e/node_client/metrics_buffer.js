// The metrics buffer of a student app in another language, with nothing but the proto files.
//
//   const app = new MetricsBuffer(stubs, { source_id, student_id, app_name, classroom_id });
//   app.record("keypress");  // at 100, after 1 s, and at once for error, hesitation and help
//   await app.flush();       // everything recorded so far has an outcome
"use strict";

const grpc = require("@grpc/grpc-js");
const protobuf = require("protobufjs");

const URGENT = new Set(["error", "hesitation", "help"]);
const FLUSH_SIZE = 100;
const FLUSH_INTERVAL_MS = 1000;
const MAX_PENDING = 10000;
const CALL_TIMEOUT_MS = 2000;
const RETRY_PAUSE_MS = 200;

// A request that was understood and refused; every other error means "send the same batch again".
const FINAL = new Set([
  grpc.status.INVALID_ARGUMENT,
  grpc.status.ALREADY_EXISTS,
  grpc.status.OUT_OF_RANGE,
  grpc.status.UNIMPLEMENTED,
]);

const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
`, { keepCase: true }).root;

// How long the cluster asks to wait, in ms; 0 where it does not say.
function retryDelay(error) {
  const [details] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!details) return 0;
  for (const any of rpc.lookupType("google.rpc.Status").decode(details).details) {
    if (any.type_url.endsWith("google.rpc.RetryInfo")) {
      const delay = rpc.lookupType("google.rpc.RetryInfo").decode(any.value).retry_delay;
      return Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    }
  }
  return 0;
}

// A clock that nobody sets: the cluster places a metric by sent_at_ms - event_time_ms.
function steadyClock() {
  const offset = Date.now() - performance.now();
  return () => Math.round(offset + performance.now());
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

class MetricsBuffer {
  constructor(stubs, identity, now = steadyClock()) {
    this.stubs = stubs; // one a peer; another one is tried after a failure
    this.identity = { ...identity, source_epoch: now() }; // fresh and higher at each start
    this.now = now;
    this.counts = { recorded: 0, acknowledged: 0, late: 0, rejected: 0, sampled: 0, dropped: 0 };
    this.attempts = new Map(); // sequence -> how often it was sent
    this.open = [];
    this.gaps = new Map(); // metric_type -> gap mark
    this.sequence = 0;
    this.pending = 0;
    this.sending = Promise.resolve(); // batches leave in order, one at a time
  }

  record(metric_type, value = 1) {
    const event_time_ms = this.now();
    this.counts.recorded += 1;
    if (this.pending >= MAX_PENDING) {
      const count = (this.gaps.get(metric_type)?.count ?? 0) + 1;
      const reason = "OMISSION_REASON_BUFFER_FULL";
      this.gaps.set(metric_type, { metric_type, count, event_time_ms, reason });
      this.counts.dropped += 1;
      return false;
    }
    this.pending += 1;
    this.open.push({ metric_type, value, event_time_ms });
    if (this.open.length >= FLUSH_SIZE || URGENT.has(metric_type)) this.seal();
    else this.timer ??= setTimeout(() => this.seal(), FLUSH_INTERVAL_MS);
    return true;
  }

  seal() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const omissions = [...this.gaps.values()].slice(0, 100);
    if (!this.open.length && !omissions.length) return;
    for (const mark of omissions) this.gaps.delete(mark.metric_type);
    this.sequence += 1;
    const batch = { ...this.identity, sequence: this.sequence, metrics: this.open, omissions };
    this.open = [];
    this.sending = this.sending.then(() => this.deliver(batch));
  }

  async flush() {
    this.seal();
    await this.sending;
  }

  // The same source_id, source_epoch and sequence at each attempt; only sent_at_ms is new.
  async deliver(batch) {
    const size = batch.metrics.length;
    for (;;) {
      this.attempts.set(batch.sequence, (this.attempts.get(batch.sequence) ?? 0) + 1);
      try {
        const answer = await this.publish({ ...batch, sent_at_ms: this.now() });
        this.settle(size, answer.results[0]);
        return;
      } catch (error) {
        if (FINAL.has(error.code)) {
          this.pending -= size;
          this.counts.rejected += size;
          return;
        }
        if (error.code !== grpc.status.RESOURCE_EXHAUSTED) this.stubs.push(this.stubs.shift());
        await pause(Math.max(RETRY_PAUSE_MS, retryDelay(error)));
      }
    }
  }

  publish(batch) {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + CALL_TIMEOUT_MS;
      this.stubs[0].PublishMetrics({ batches: [batch] }, { deadline }, (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
  }

  // A repeat (BATCH_STATUS_DUPLICATE) is answered with the counts of its first time.
  settle(size, result) {
    const rejected = result.rejected.length;
    this.pending -= size;
    this.counts.acknowledged += result.accepted_count;
    this.counts.late += result.late_count;
    this.counts.rejected += rejected;
    this.counts.sampled += size - result.accepted_count - result.late_count - rejected;
  }
}

module.exports = { MetricsBuffer, retryDelay };
