// Reads /openapi.json into what the REST page shows, so that members, limits, statuses and examples are written once.

/**
 * Return `{ about, calls, encounter, responses }` of an OpenAPI description.
 *
 * `calls` are the operations with the tag "encounters", in the order of the description; `encounter` are the members of an
 * encounter; `responses` are all responses of these calls, by status.
 */
export function readDescription(description) {
  const resolve = (node) => (node?.$ref ? follow(description, node.$ref) : node);
  const calls = Object.entries(description.paths).flatMap(([path, item]) =>
    Object.entries(item)
      .filter(([, operation]) => operation.tags?.includes("encounters"))
      .map(([method, operation]) => readCall(method.toUpperCase(), path, operation, item.parameters ?? [], resolve)),
  );
  return {
    about: description.info.description,
    calls,
    encounter: readMembers(description.components.schemas.Encounter, resolve),
    responses: responsesOf(calls),
  };
}

function follow(description, ref) {
  return ref
    .slice(2)
    .split("/")
    .reduce((node, name) => node[name.replaceAll("~1", "/").replaceAll("~0", "~")], description);
}

function readCall(method, path, operation, shared, resolve) {
  const [description, ...scopes] = operation.description.split("\n\n");
  const body = operation.requestBody?.content["application/json"];
  const responses = Object.entries(operation.responses).map(([status, response]) => readResponse(status, resolve(response)));
  return {
    id: operation.operationId,
    method,
    path,
    summary: operation.summary,
    description,
    scopes: scopes.join(" "),
    parameters: [...operation.parameters, ...shared]
      .map(resolve)
      .sort((one, other) => ORDER[one.in] - ORDER[other.in])
      .map((each) => ({ ...each, type: typeOf(each.schema, resolve), limits: limitsOf(each.schema) })),
    members: body && readMembers(resolve(body.schema), resolve),
    examples: body && Object.entries(body.examples).map(([name, { summary, value }]) => ({ name, summary, value })),
    responses,
    // POST has 200 too, for a dry run.
    success: responses.filter((each) => each.status < 300).at(-1),
  };
}

const ORDER = { path: 0, query: 1, header: 2 };

function readResponse(status, { description, content }) {
  const example = content?.["application/json"]?.example;
  return { status: Number(status), description, example, code: example?.error, recorded: example?.recorded };
}

function responsesOf(calls) {
  const byStatus = new Map();
  for (const call of calls) {
    for (const response of call.responses) {
      const known = byStatus.get(response.status) ?? { ...response, descriptions: new Map(), calls: [] };
      known.calls.push(call);
      known.descriptions.set(response.description, [...(known.descriptions.get(response.description) ?? []), call]);
      byStatus.set(response.status, known);
    }
  }
  return [...byStatus.values()].sort((one, other) => one.status - other.status);
}

function readMembers({ properties, required = [] }, resolve) {
  return Object.entries(properties).map(([name, schema]) => ({
    name,
    required: required.includes(name),
    description: schema.description,
    type: typeOf(schema, resolve),
    limits: limitsOf(schema),
    values: resolve(schema).enum,
  }));
}

function typeOf(schema, resolve) {
  const { type, format, enum: values } = resolve(schema);
  if (values) return "enum";
  const [name, ...others] = [type].flat();
  return [format ?? name, ...others].join(" or ");
}

function limitsOf({ minLength, maxLength, minimum, maximum, default: standard }) {
  const number = (value) => value.toLocaleString("en");
  return [
    minLength && `at least ${minLength} character${minLength > 1 ? "s" : ""}`,
    maxLength && `at most ${number(maxLength)} characters`,
    // A maximum beyond what a double holds is that of a 64-bit integer.
    Number.isSafeInteger(maximum) ? `${minimum} to ${number(maximum)}` : minimum !== undefined && `from ${minimum}`,
    standard !== undefined && `default ${JSON.stringify(standard)}`,
  ]
    .filter(Boolean)
    .join(", ");
}
