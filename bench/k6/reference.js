// The load of the reference's own test: 20 clients, 12.5 messages a second in all, each on time whatever the last took.
// PEOPLE names a JSON file of {token, body}, one for each client; SUMMARY is where the numbers go.
import http from "k6/http";
import { check } from "k6";

const people = JSON.parse(open(__ENV.PEOPLE));

export const options = {
  scenarios: {
    reference: {
      executor: "constant-arrival-rate",
      rate: 25,
      timeUnit: "2s",
      duration: `${__ENV.SECONDS}s`,
      preAllocatedVUs: people.length,
      maxVUs: people.length,
    },
  },
  summaryTrendStats: ["med", "p(95)", "p(99)", "max"],
  discardResponseBodies: true,
};

export default function () {
  const who = people[(__VU - 1) % people.length];
  const answer = http.post(__ENV.MESSAGES_URL, who.body, {
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${who.token}` },
  });
  check(answer, { accepted: (each) => each.status === 202 });
}

export function handleSummary(data) {
  return { [__ENV.SUMMARY]: JSON.stringify(data) };
}
