/**
 * The URL of the gateway's root as this browser reached it, without a final slash. A proxy may serve the root below a path;
 * every page lies directly below the root.
 */
export const base = new URL(".", location.href).href.slice(0, -1);
