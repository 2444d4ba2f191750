-- Reads the task ids in a slice of a list of messages, without sending the messages to the caller.
--
-- list         of a queue  list  read; a key of another type counts as empty
-- first        index of the first message
-- last         index of the last
-- slice_bytes  after so many bytes the call ends, because Redis serves no other client meanwhile
-- max_bytes    of a message; a larger one has no id
-- Returns {number of messages read, ids...}.
local list = unpack(KEYS)
local first, last, slice_bytes, max_bytes = unpack(ARGV)
local at, bytes, found = tonumber(first), 0, {0}
while at <= tonumber(last) and bytes < tonumber(slice_bytes) do
  local message = redis.pcall('LRANGE', list, at, at)[1]
  if not message then break end
  at, bytes = at + 1, bytes + #message
  if #message <= tonumber(max_bytes) then
    local ok, entry = pcall(cjson.decode, message)
    if ok and type(entry) == 'table' and type(entry.headers) == 'table'
      and type(entry.headers.id) == 'string' then
      found[#found + 1] = entry.headers.id
    end
  end
end
found[1] = at - first
return found
