/**
 * Who has deployed a version of a worker: the id of a key, "" where there were no keys, and NULL where nobody has
 * noted it. Whoever deployed without keys is no other than who does so now; of several keys it could be any.
 */
export const ownersSchema = `
  ALTER TABLE worker_versions ADD COLUMN owner TEXT;
  UPDATE worker_versions SET owner = '' WHERE NOT EXISTS (SELECT 1 FROM keys);
`;
