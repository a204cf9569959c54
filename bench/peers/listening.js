// The first line says where; and whoever started us need only close our standard input to end us.
export const listening = (origin) => {
  console.log(origin.replace(/\/$/, ""));
  process.stdin.on("end", () => process.exit(0)).resume();
};
