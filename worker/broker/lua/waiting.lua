-- The ids of a slice of a list of messages. Parsing stays here, so that no message travels.
--
-- KEYS[1]  the list  list  read; another type is an empty list
-- ARGV     first and last index, bytes after which it stops: nobody else is served meanwhile; bytes
--          of a message that is not taken either
-- gives    {number of messages looked at, ids…}
local at, last, found, bytes = tonumber(ARGV[1]), tonumber(ARGV[2]), {0}, 0
while at <= last and bytes < tonumber(ARGV[3]) do
  local message = redis.pcall('LRANGE', KEYS[1], at, at)[1]
  if not message then break end
  at, bytes = at + 1, bytes + #message
  if #message <= tonumber(ARGV[4]) then
    local ok, entry = pcall(cjson.decode, message)
    if ok and type(entry) == 'table' and type(entry.headers) == 'table'
      and type(entry.headers.id) == 'string' then
      found[#found + 1] = entry.headers.id
    end
  end
end
found[1] = at - ARGV[1]
return found
