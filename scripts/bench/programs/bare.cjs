// The least that a process which answers HTTP can be: what a function's start is measured against.
const server = require("node:http").createServer((_, response) => {
  response.writeHead(200, { "content-type": "application/json", "content-length": 2 }).end("{}");
});
server.listen(0, () => process.send({ port: server.address().port }));
process.once("disconnect", () => process.exit());
