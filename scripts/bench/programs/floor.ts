/**
 * The floor: POST /order/pay with node:http and pg, in one small prepared statement with the same effect: both entries of the
 * transfer, the order and the outbox row. It has no validation, idempotency key, log, limit, hash chain or publishing.
 */
import { randomBytes, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Pool } from "pg";
import { userOf } from "./token.ts";

const POOL_CONNECTIONS = 10;
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: POOL_CONNECTIONS });

await pool.query(`
  create table subscriptions (id integer primary key, price bigint not null);
  insert into subscriptions (id, price) values (1, 1000), (2, 9500), (3, 120000);
  create table accounts (id uuid primary key, balance bigint not null check (balance >= 0));
  create table orders (
    id uuid primary key, user_id uuid not null, subscription_id integer not null, price bigint not null,
    created_at timestamptz not null default now());
  create index orders_by_user on orders (user_id, created_at);
  create table entries (
    id bigint generated always as identity primary key, order_id uuid not null, account text not null, amount bigint not null);
  create table outbox (
    id uuid primary key, topic text not null, subject uuid not null, traceparent text, data jsonb not null,
    created_at timestamptz not null default now());
  create index outbox_by_subject on outbox (subject)`);

const PAY = `
  with charged as (
    update accounts a set balance = a.balance - s.price from subscriptions s
    where a.id = $1 and s.id = $2 and a.balance >= s.price
    returning a.balance, s.price
  ), ordered as (
    insert into orders (id, user_id, subscription_id, price) select $3, $1, $2, price from charged
  ), transferred as (
    insert into entries (order_id, account, amount)
    select $3, e.account, e.sign * c.price from charged c, (values ($1::text, -1), ('revenue', 1)) e (account, sign)
  ), recorded as (
    insert into outbox (id, topic, subject, traceparent, data)
    select $4, 'notification-requested', $1, $5,
      jsonb_build_object('userId', $1, 'recipient', $6::text, 'kind', 'order-paid', 'orderId', $3, 'amount', c.price, 'balance', c.balance)
    from charged c
  )
  select balance, price from charged`;

const server = createServer(async (request, response) => {
  const { sub, email } = userOf(request.headers.authorization);
  const subscription = Number(new URLSearchParams(request.url?.split("?")[1]).get("idSubscription"));
  const traceparent = `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-01`;
  const id = randomUUID();
  const values = [sub, subscription, id, randomUUID(), traceparent, email];
  const { rows } = await pool.query({ name: "pay", text: PAY, values });
  const [paid] = rows;
  const order = { id, idSubscription: subscription, price: Number(paid?.price) / 100, status: "paid" };
  const text = JSON.stringify({ order, balance: Number(paid?.balance) / 100 });
  response
    .writeHead(paid === undefined ? 400 : 200, {
      "content-type": "application/json",
      "content-length": Buffer.byteLength(text),
    })
    .end(text);
});
server.listen(0, "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
process.once("disconnect", () => process.exit());
