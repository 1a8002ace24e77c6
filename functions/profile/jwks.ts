/** GET /profile/jwks. The public keys that tokens are checked with (RFC 7517), for whoever wants to check one. */
import * as v from "valibot";
import { endpoint, ok } from "#kernel/endpoint";
import { readSettingFile } from "#kernel/settings";

/** On a cluster a key is in the set for longer than this before it signs (scripts/rotate), and it stays for as long as its tokens. */
const CACHE_SECONDS = 60;

const PublicKey = v.object({
  kty: v.literal("OKP"),
  crv: v.literal("Ed25519"),
  x: v.string(),
  kid: v.string(),
  alg: v.literal("EdDSA"),
  use: v.literal("sig"),
});

export default endpoint({
  method: "GET",
  caller: "anyone",
  uses: ["public-keys"],
  answers: { 200: v.object({ keys: v.array(PublicKey) }) },
  async handle() {
    // Through the schema: whatever else the file may hold, only public members leave.
    const { keys } = v.parse(v.object({ keys: v.array(PublicKey) }), JSON.parse(readSettingFile("JWKS_FILE")));
    return ok({ keys }, { "cache-control": `public, max-age=${CACHE_SECONDS}` });
  },
});
