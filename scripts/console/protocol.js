/** The messages between the gateway and the page of the console. Times are integer microseconds since 1970, by the gateway's clock. */
export {};
