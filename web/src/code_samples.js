// One REST request as source code in five languages.

import { faithful } from "./exact_json.js";
import { quote } from "./shell.js";

/**
 * The languages, in the order of their tabs: `{ id, name, write }`.
 *
 * `write` takes `{ method, url, headers, body, token }`: headers are pairs without `Authorization`, `body` is JSON as typed
 * or undefined, `token` is the token to show or null. Without one the code reads the environment variable TOKEN.
 */
export const LANGUAGES = [
  { id: "curl", name: "curl", write: curl },
  { id: "python", name: "Python", write: python },
  { id: "typescript", name: "TypeScript", write: typescript },
  { id: "java", name: "Java", write: java },
  { id: "csharp", name: "C#", write: csharp },
];

// A JSON string is a string literal of Python, TypeScript, Java and C# too.
const literal = (text) => JSON.stringify(text);
const indented = (text, by) => text.replaceAll("\n", `\n${" ".repeat(by)}`);
const JSON_TYPE = ["Content-Type", "application/json"];

function curl({ method, url, headers, body, token }) {
  return [
    `curl${method === "GET" || method === "POST" ? "" : ` -X ${method}`} ${quote(url)}`,
    token ? `-H ${quote(`Authorization: Bearer ${token}`)}` : '-H "Authorization: Bearer $TOKEN"',
    ...(body === undefined ? [] : [`-H ${quote(JSON_TYPE.join(": "))}`]),
    ...headers.map(([name, value]) => `-H ${quote(`${name}: ${value}`)}`),
    // With -d a text that begins with @ would name a file.
    ...(body === undefined ? [] : [`${body.startsWith("@") ? "--data-raw" : "-d"} ${quote(body)}`]),
  ].join(" \\\n  ");
}

function python({ method, url, headers, body, token }) {
  const value = body === undefined ? undefined : structure(body);
  const all = [...(body === undefined || value ? [] : [JSON_TYPE]), ...headers];
  const lines = [
    literal(url),
    [
      "headers={",
      `    "Authorization": ${token ? literal(`Bearer ${token}`) : "f\"Bearer {os.environ['TOKEN']}\""},`,
      ...all.map(([name, header]) => `    ${literal(name)}: ${literal(header)},`),
      "}",
    ].join("\n"),
    ...(body === undefined ? [] : value ? [`json=${pythonOf(value)}`] : [`content=${literal(body)}`]),
  ];
  return `${token ? "" : "import os\n\n"}import httpx

answer = httpx.${method.toLowerCase()}(
    ${lines.map((line) => indented(line, 4)).join(",\n    ")},
)
print(answer.status_code, answer.text)`;
}

function typescript({ method, url, headers, body, token }) {
  const value = body === undefined ? undefined : structure(body);
  const all = [...(body === undefined ? [] : [JSON_TYPE]), ...headers];
  return `const answer = await fetch(${literal(url)}, {
  method: ${literal(method)},
  headers: {
    Authorization: ${token ? literal(`Bearer ${token}`) : "`Bearer ${process.env.TOKEN}`"},
${all.map(([name, header]) => `    ${/^\w+$/.test(name) ? name : literal(name)}: ${literal(header)},\n`).join("")}  },
${body === undefined ? "" : `  body: ${value ? `JSON.stringify(${indented(JSON.stringify(value, null, 2), 2)})` : literal(body)},\n`}});
console.log(answer.status, await answer.text());`;
}

function java({ method, url, headers, body, token }) {
  const all = [...(body === undefined ? [] : [JSON_TYPE]), ...headers];
  const publisher = body === undefined ? "" : `HttpRequest.BodyPublishers.ofString(${javaText(body)})`;
  return `import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

class Call {
    public static void main(String[] arguments) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(${literal(url)}))
            .header("Authorization", ${token ? literal(`Bearer ${token}`) : '"Bearer " + System.getenv("TOKEN")'})
${all.map(([name, header]) => `            .header(${literal(name)}, ${literal(header)})\n`).join("")}            .${method}(${publisher})
            .build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.body());
    }
}`;
}

function csharp({ method, url, headers, body, token }) {
  const verb = `HttpMethod.${method[0]}${method.slice(1).toLowerCase()}`;
  const bearer = token ? literal(token) : 'Environment.GetEnvironmentVariable("TOKEN")';
  const content = body === undefined ? "" : `request.Content = new StringContent(${csharpText(body)}, Encoding.UTF8, "application/json");\n`;
  return `using System.Net.Http.Headers;
${body === undefined ? "" : "using System.Text;\n"}
using var client = new HttpClient();
using var request = new HttpRequestMessage(${verb}, ${literal(url)});
request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", ${bearer});
${headers.map(([name, header]) => `request.Headers.TryAddWithoutValidation(${literal(name)}, ${literal(header)});\n`).join("")}${content}using var answer = await client.SendAsync(request);
Console.WriteLine($"{(int)answer.StatusCode} {await answer.Content.ReadAsStringAsync()}");`;
}

/**
 * Return the value of a JSON body that a literal of Python or TypeScript sends unchanged, else undefined: for malformed JSON,
 * a member that occurs twice, or a number such as 1.10, which these languages would send as 1.1.
 */
function structure(body) {
  if (!faithful(body) || body.includes("__proto__")) return undefined;
  const value = JSON.parse(body);
  return typeof value === "object" && value !== null ? value : undefined;
}

function pythonOf(value, by = 0) {
  const inner = " ".repeat(by + 4);
  const outer = " ".repeat(by);
  const lines = (open, parts, close) => (parts.length ? `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${outer}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
    if (Array.isArray(value)) return lines("[", value.map((each) => pythonOf(each, by + 4)), "]");
  if (typeof value !== "object") return JSON.stringify(value);
  return lines("{", Object.entries(value).map(([name, each]) => `${literal(name)}: ${pythonOf(each, by + 4)}`), "}");
}

// Valid JSON has no three quotation marks in a row.
const fitsTextBlock = (body) => body.includes("\n") && !body.includes('"""') && !/\r/.test(body);

function javaText(body) {
  if (!fitsTextBlock(body)) return literal(body);
  return `"""\n${" ".repeat(16)}${indented(body.replaceAll("\\", "\\\\"), 16)}"""`;
}

function csharpText(body) {
  if (!fitsTextBlock(body)) return literal(body);
  return `"""\n    ${indented(body, 4)}\n    """`;
}
