/**
 * The conventional implementation: POST /order/pay with express, pg and kafkajs. A transaction of several statements, then `send`
 * awaited inside the request. This design accepts that a crash between COMMIT and `send` loses the event.
 */
import { randomUUID } from "node:crypto";
import type { AddressInfo } from "node:net";
import express, { type NextFunction, type Request, type Response } from "express";
import { Kafka, logLevel } from "kafkajs";
import { Pool, type PoolClient } from "pg";
import { userOf } from "./token.ts";

const POOL_CONNECTIONS = 10;
const TOPIC = "notification-requested";

const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: POOL_CONNECTIONS });
const kafka = new Kafka({ brokers: (process.env.KAFKA_BROKERS ?? "").split(","), logLevel: logLevel.ERROR });
const producer = kafka.producer();
await producer.connect();

await pool.query(`
  create table subscriptions (id integer primary key, price bigint not null);
  insert into subscriptions (id, price) values (1, 1000), (2, 9500), (3, 120000);
  create table accounts (id uuid primary key, balance bigint not null check (balance >= 0));
  create table orders (
    id uuid primary key, user_id uuid not null references accounts, subscription_id integer not null references subscriptions,
    price bigint not null, status text not null, created_at timestamptz not null default now());
  create index orders_by_user on orders (user_id, created_at);
  create table entries (
    id bigint generated always as identity primary key, order_id uuid not null references orders, account text not null,
    amount bigint not null)`);

class HttpError extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

/** Runs work in a transaction: COMMIT when it resolves, ROLLBACK when it rejects. */
async function transaction<T>(work: (client: PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const result = await work(client);
    await client.query("COMMIT");
    return result;
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

interface Paid {
  readonly order: { id: string; idSubscription: number; price: number; status: "paid"; createdAt: string };
  readonly balance: number;
}

async function pay(userId: string, idSubscription: number): Promise<Paid> {
  return transaction(async (client) => {
    const subscriptions = await client.query("SELECT price FROM subscriptions WHERE id = $1", [idSubscription]);
    if (subscriptions.rowCount === 0) throw new HttpError(404, "The subscription does not exist.");
    const price = Number(subscriptions.rows[0].price);
    const accounts = await client.query("SELECT balance FROM accounts WHERE id = $1 FOR UPDATE", [userId]);
    if (accounts.rowCount === 0) throw new HttpError(409, "The account is not open.");
    const balance = Number(accounts.rows[0].balance) - price;
    if (balance < 0) throw new HttpError(400, "Not enough money.");
    await client.query("UPDATE accounts SET balance = $2 WHERE id = $1", [userId, balance]);
    const id = randomUUID();
    const orders = await client.query(
      "INSERT INTO orders (id, user_id, subscription_id, price, status) VALUES ($1, $2, $3, $4, 'paid') RETURNING created_at",
      [id, userId, idSubscription, price],
    );
    await client.query("INSERT INTO entries (order_id, account, amount) VALUES ($1, $2, $3), ($1, 'revenue', $4)", [
      id,
      userId,
      -price,
      price,
    ]);
    const createdAt = orders.rows[0].created_at.toISOString();
    return { order: { id, idSubscription, price: price / 100, status: "paid", createdAt }, balance: balance / 100 };
  });
}

const app = express();
app.disable("x-powered-by");

app.post("/order/pay", async (request: Request, response: Response) => {
  const { sub, email } = userOf(request.headers.authorization);
  const idSubscription = Number(request.query.idSubscription);
  if (!Number.isInteger(idSubscription)) throw new HttpError(400, "idSubscription must be a whole number.");
  const { order, balance } = await pay(sub, idSubscription);
  const data = { userId: sub, recipient: email, kind: "order-paid", orderId: order.id, amount: order.price, balance };
  const headers = { ce_specversion: "1.0", ce_id: randomUUID(), ce_source: "/order/pay", ce_type: TOPIC };
  await producer.send({ topic: TOPIC, messages: [{ key: sub, value: JSON.stringify(data), headers }] });
  response.json({ order, balance });
});

app.use((error: Error, _request: Request, response: Response, _next: NextFunction) => {
  response.status(error instanceof HttpError ? error.status : 500).json({ message: error.message });
});

const server = app.listen(0, "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
process.once("disconnect", () => process.exit());
