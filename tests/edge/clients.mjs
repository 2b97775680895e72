// Other people's clients for Node against a daemon: argv is BASE_URL TOKEN MODEL; prints JSON.
// Run as a module on standard input, in the folder where the clients are installed.
import OpenAI from "openai";
import Anthropic from "@anthropic-ai/sdk";

const [base, token, model] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${base}/v1`, apiKey: token, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: base, apiKey: token, maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const found = {};

const whole = await openai.chat.completions.create({ model, messages, max_tokens: 16 });
found.chat = whole.choices[0].message.content;
found.streamed = "";
for await (const chunk of await openai.chat.completions.create({
  model, messages, max_tokens: 16, stream: true, stream_options: { include_usage: true },
})) {
  found.streamed += chunk.choices[0]?.delta?.content ?? "";
  found.route = chunk.overspill?.route ?? found.route;
}

const parameters = {
  type: "object",
  properties: { place: { enum: ["Oslo", "Rome"] } },
  required: ["place"],
  additionalProperties: false,
};
const called = await openai.chat.completions.create({
  model, messages, tool_choice: "required", parallel_tool_calls: false,
  tools: [{ type: "function", function: { name: "weather", parameters, strict: true } }],
});
found.call = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments);

const response = openai.responses.stream({
  model, input: "hello", max_output_tokens: 64,
  text: { format: { type: "json_schema", name: "n", schema: parameters } },
});
found.deltas = "";
response.on("response.output_text.delta", (event) => { found.deltas += event.delta; });
found.response = (await response.finalResponse()).output_text;

const stream = anthropic.messages.stream({ model, max_tokens: 16, messages });
found.said = "";
stream.on("text", (text) => { found.said += text; });
found.message = (await stream.finalMessage()).content[0].text;
found.count = (await anthropic.messages.countTokens({ model, messages })).input_tokens;

try {
  await openai.chat.completions.create({ model: "nobody", messages });
} catch (error) {
  found.error = [error.status, error.code];
}
console.log(JSON.stringify(found));
