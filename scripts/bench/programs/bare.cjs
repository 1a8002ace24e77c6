// The smallest process that answers HTTP. The bench measures the start of a function against it.
const server = require("node:http").createServer((_, response) => {
  response.writeHead(200, { "content-type": "application/json", "content-length": 2 }).end("{}");
});
server.listen(0, () => process.send({ port: server.address().port }));
process.once("disconnect", () => process.exit());
