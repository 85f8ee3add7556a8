/** Values that modules' tasks return, as JSON, beside what tasks print. */
export const valuesSchema = `
  ALTER TABLE outputs ADD COLUMN value TEXT;
`;
