/** Deposits money for a test or a measurement, as the owner of the database. */
import type { Client } from "pg";

/**
 * Deposits an amount for each user with the ledger's own function, in one statement. No notification is sent.
 * @param client connected as the owner of the database
 * @param minorUnits cents, up to the limit of a balance
 */
export async function deposit(client: Client, userIds: readonly string[], minorUnits: number | bigint): Promise<void> {
  await client.query(
    `select billing.move_unchecked('billing', 'deposit', true, ids, nulls::uuid[], array_fill($2::bigint, array[cardinality(ids)]),
       nulls::uuid[], nulls, nulls, nulls)
     from (select $1::uuid[] as ids, array_fill(null::text, array[cardinality($1::uuid[])]) as nulls) d`,
    [userIds, String(minorUnits)],
  );
}
