/** GET /profile/jwks. Returns the public keys that verify tokens (RFC 7517). */
import * as v from "valibot";
import { endpoint, ok } from "#kernel/endpoint";
import { PublicKey, readPublicKeys } from "#kernel/token";

/** A rotation on a cluster publishes a key for longer than this before the key signs (npx lotus rotate). */
const CACHE_SECONDS = 60;

export default endpoint({
  method: "GET",
  caller: "anyone",
  summary: "Returns the public keys that verify tokens (RFC 7517).",
  uses: ["public-keys"],
  answers: { 200: v.object({ keys: v.array(PublicKey) }) },
  async handle() {
    return ok({ keys: readPublicKeys() }, { "cache-control": `public, max-age=${CACHE_SECONDS}` });
  },
});
