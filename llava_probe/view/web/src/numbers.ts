// Numbers for people: enough digits to tell two apart, never "-0".

export function percent(share: number, digits = 0): string {
  const rounded = (100 * share).toFixed(digits);
  return `${Number(rounded) === 0 ? (0).toFixed(digits) : rounded} %`;
}

export function number(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000 || size < 0.0005) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

/** A change: with its sign. */
export function signed(value: number): string {
  return `${value > 0 ? "+" : ""}${number(value)}`;
}

/** Numbers of a list as ranges: 0–3, 7. */
export function ranges(numbers: readonly number[]): string {
  const parts: string[] = [];
  for (let start = 0, end = 0; start < numbers.length; start = end) {
    end = start + 1;
    while (end < numbers.length && numbers[end] === numbers[end - 1] + 1) end++;
    parts.push(end - start === 1 ? `${numbers[start]}` : `${numbers[start]}–${numbers[end - 1]}`);
  }
  return parts.join(", ");
}
