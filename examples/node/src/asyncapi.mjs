// Reads an AsyncAPI document with AsyncAPI's own parser; every remark is a failure.
import { Parser, fromFile } from "@asyncapi/parser";

const { document, diagnostics } = await fromFile(new Parser(), process.argv[2]).parse();
for (const { path, message } of diagnostics) console.error(`${path.join("/")}: ${message}`);
for (const channel of document?.channels() ?? []) console.log(channel.id(), channel.address());
process.exitCode = document === undefined || diagnostics.length > 0 ? 1 : 0;
