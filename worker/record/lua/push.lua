-- Notes what an ended task's request wants to be pushed, once: it is due now.
--
-- KEYS[1]  ns:{id}:task  hash        read; push_<kind> written, to be tried
-- KEYS[2]  ns:pushes     sorted set  <kind>:<id> added
-- ARGV     id, then the kinds: fields of the request
-- gives    how many were noted
--
-- Field `told` says that this was done, so that nobody looks again.
local of = redis.call('HMGET', KEYS[1], 'status', 'request', 'told')
if not of[1] or of[1] == 'queued' or of[1] == 'running' or of[3] then return 0 end
redis.call('HSET', KEYS[1], 'told', 1)
local ok, request = pcall(cjson.decode, of[2] or '')
if not ok or type(request) ~= 'table' then return 0 end
local noted = 0
for number = 2, #ARGV do
  local kind = ARGV[number]
  if request[kind] and request[kind] ~= cjson.null then
    redis.call('HSET', KEYS[1], 'push_' .. kind, '{"state":"waiting"}')
    redis.call('ZADD', KEYS[2], string.format('%.6f', now_s()), kind .. ':' .. ARGV[1])
    noted = noted + 1
  end
end
return noted
