import type { CommandUse } from "./commands-in-use.ts";
import type { ObjectShape, SchemaInUse, Shape } from "./schema.ts";

/**
 * Compares an installed QEMU with the one that the types were generated from: does it take every
 * command and argument in use, and answer at least what the types promise?
 *
 * @returns One sentence a problem; an empty list when the types hold for the installed QEMU.
 */
export function compatibilityProblems(
  generated: SchemaInUse,
  installed: SchemaInUse,
  uses: Readonly<Record<string, CommandUse>>,
): string[] {
  const problems: string[] = [];
  for (const [name, use] of Object.entries(uses)) {
    const ours = generated.commands[name];
    const theirs = installed.commands[name];
    if (ours === undefined) {
      problems.push(`The types lack command "${name}"`);
    } else if (theirs === undefined) {
      problems.push(`QEMU ${installed.version} lacks command "${name}"`);
    } else {
      if (use.oob === true && !theirs.oob) problems.push(`"${name}" cannot run out of band`);
      problems.push(...argumentProblems(name, use, ours.arguments, theirs.arguments));
      problems.push(...answerProblems(name, ours.returns, theirs.returns));
    }
  }
  for (const [name, ours] of Object.entries(generated.events)) {
    const theirs = installed.events[name];
    if (theirs === undefined) problems.push(`QEMU ${installed.version} lacks event "${name}"`);
    else problems.push(...answerProblems(name, ours, theirs));
  }
  return problems;
}

function argumentProblems(
  command: string,
  use: CommandUse,
  ours: ObjectShape,
  theirs: ObjectShape,
): string[] {
  const problems: string[] = [];
  for (const [name, member] of Object.entries(theirs.members)) {
    if (!member.optional && !use.arguments.includes(name)) problems.push(`"${command}" requires "${name}"`);
  }
  for (const name of use.arguments) {
    const mine = ours.members[name];
    const other = theirs.members[name];
    const path = `${command}.${name}`;
    if (mine === undefined) problems.push(`The types lack argument "${path}"`);
    else if (other === undefined) problems.push(`QEMU takes no argument "${path}"`);
    else if (mine.optional && !other.optional && !use.always?.includes(name))
      problems.push(`"${path}" is required`);
    else problems.push(...acceptProblems(path, mine.shape, other.shape));
  }
  return problems;
}

/** Would they take what we send? Enumerations grow, so it is enough that they share values. */
function acceptProblems(path: string, ours: Shape, theirs: Shape): string[] {
  if (theirs.kind === "alternate" && ours.kind !== "alternate") {
    const taken = theirs.of.some((one) => acceptProblems(path, ours, one).length === 0);
    return taken ? [] : [`"${path}" takes no ${ours.kind}`];
  }
  if (ours.kind === "object" && theirs.kind === "object") {
    const required = Object.entries(theirs.members).filter(([, member]) => !member.optional);
    return required.flatMap(([name, member]) => {
      const mine = ours.members[name];
      if (mine === undefined || mine.optional) return [`"${path}.${name}" is required`];
      return acceptProblems(`${path}.${name}`, mine.shape, member.shape);
    });
  }
  return sameKindProblems(path, ours, theirs, acceptProblems);
}

/** Do they answer all that our types promise? They may answer more. */
function answerProblems(path: string, ours: Shape, theirs: Shape): string[] {
  if (ours.kind === "object" && theirs.kind === "object") {
    return Object.entries(ours.members).flatMap(([name, mine]) => {
      const inner = `${path}.${name}`;
      const other = theirs.members[name];
      if (other === undefined) return mine.optional ? [] : [`QEMU does not answer "${inner}"`];
      if (other.optional && !mine.optional) return [`QEMU does not always answer "${inner}"`];
      return answerProblems(inner, mine.shape, other.shape);
    });
  }
  return sameKindProblems(path, ours, theirs, answerProblems);
}

function sameKindProblems(
  path: string,
  ours: Shape,
  theirs: Shape,
  compare: (path: string, ours: Shape, theirs: Shape) => string[],
): string[] {
  if (ours.kind === "array" && theirs.kind === "array") return compare(`${path}[]`, ours.of, theirs.of);
  if (ours.kind === "enum" && theirs.kind === "enum") {
    const shared = ours.values.some((value) => theirs.values.includes(value));
    return shared ? [] : [`"${path}" shares no value`];
  }
  if (ours.kind === "builtin" && theirs.kind === "builtin") {
    return ours.json === theirs.json ? [] : [`"${path}" is ${theirs.json}, not ${ours.json}`];
  }
  return ours.kind === theirs.kind ? [] : [`"${path}" is ${theirs.kind}, not ${ours.kind}`];
}
