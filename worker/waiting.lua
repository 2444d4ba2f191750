-- The ids of a slice of a list of messages. Parsing stays here, so that no message travels.
--
-- KEYS[1]  the list  list  read
-- ARGV     first and last index
-- gives    {number of messages in the slice, ids…}
local messages = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])
local found = {#messages}
for _, message in ipairs(messages) do
  local ok, entry = pcall(cjson.decode, message)
  if ok and type(entry) == 'table' and type(entry.headers) == 'table'
    and type(entry.headers.id) == 'string' then
    found[#found + 1] = entry.headers.id
  end
end
return found
