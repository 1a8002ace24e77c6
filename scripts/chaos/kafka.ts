/** Three brokers whose clients authenticate, so that a fault can refuse their credentials. */
import { randomBytes } from "node:crypto";
import { type Kafka, startKafka } from "../kafka/cluster.ts";

const USERNAME = "lotus";
const PASSWORD_BYTES = 18;

/** Brokers with a listener for Lotus, which demands a password, and a plain one for faults. */
export interface SecuredKafka extends Kafka {
  /** The settings with which Lotus connects. */
  readonly environment: Readonly<Record<string, string>>;
  /** Restarts one broker with the password of Lotus, or with another one. Resolves when it serves. */
  changePassword(index: number, accepts: boolean): Promise<void>;
}

/** Starts the brokers. @throws {Error} a sentence, when Kafka cannot be started */
export async function startSecuredKafka(folder: string, onProgress: (line: string) => void): Promise<SecuredKafka> {
  const password = randomBytes(PASSWORD_BYTES).toString("base64url");
  let accepted = password;
  const kafka = await startKafka({
    brokers: 3,
    folder,
    fresh: true,
    onProgress,
    secured: {
      protocol: "SASL_PLAINTEXT",
      // A starting broker reads the properties, so the next start uses the password of that moment.
      get properties() {
        return {
          "listener.name.secured.sasl.enabled.mechanisms": "PLAIN",
          "listener.name.secured.plain.sasl.jaas.config": `org.apache.kafka.common.security.plain.PlainLoginModule required user_${USERNAME}="${accepted}";`,
        };
      },
    },
  });
  if (kafka.secured.length === 0)
    throw new Error("Chaos kills its brokers, so it starts its own. Run it without the variable KAFKA_BROKERS.");
  return {
    owned: kafka.owned,
    get running() {
      return kafka.running;
    },
    bootstrap: kafka.bootstrap,
    secured: kafka.secured,
    stop: () => kafka.stop(),
    kill: (index) => kafka.kill(index),
    restart: (index) => kafka.restart(index),
    erase: () => kafka.erase(),
    environment: {
      KAFKA_BROKERS: kafka.secured.join(","),
      KAFKA_SASL_MECHANISM: "plain",
      KAFKA_USERNAME: USERNAME,
      KAFKA_PASSWORD: password,
      KAFKA_PREFIX: "",
    },
    async changePassword(index, accepts) {
      accepted = accepts ? password : randomBytes(PASSWORD_BYTES).toString("base64url");
      await kafka.restart(index);
      accepted = password;
    },
  };
}
