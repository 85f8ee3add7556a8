export interface ListenOptions {
  hostname: string;
  /** 0 for any that is free. */
  port: number;
  fetch: (request: Request) => Response | Promise<Response>;
  /** Answers what `fetch` throws. */
  onError: (error: unknown) => Response;
}

/** How a runtime serves. */
export interface RuntimeServer {
  port: number;
  /** Accepts no more; settles when all requests have ended. */
  drain(): Promise<void>;
  /** Cuts what is open. */
  cut(): Promise<void>;
}
