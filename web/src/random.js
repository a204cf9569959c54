/** Return 16 random hexadecimal digits. `crypto.randomUUID` does not exist on a page that was loaded over plain HTTP. */
export const freshKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
