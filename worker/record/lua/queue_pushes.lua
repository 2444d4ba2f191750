-- Queues the pushes that an ended task's request asks for, once. They are due now.
--
-- task    ns:{id}:task  hash        read; told set; push_<kind> written as waiting
-- pushes  ns:pushes     sorted set  <kind>:<id> added
-- id
-- kinds   fields of the request that ask for a push
-- Returns the number of pushes added.
--
-- Field `told` of the record says that its pushes were queued.
local task, pushes = unpack(KEYS)
local id = unpack(ARGV)
local kinds = {unpack(ARGV, 2)}
local status, request, told = unpack(redis.call('HMGET', task, 'status', 'request', 'told'))
if not status or status == 'queued' or status == 'running' or told then return 0 end
redis.call('HSET', task, 'told', 1)
local ok, fields = pcall(cjson.decode, request or '')
if not ok or type(fields) ~= 'table' then return 0 end
local added = 0
for _, kind in ipairs(kinds) do
  if fields[kind] and fields[kind] ~= cjson.null then
    redis.call('HSET', task, 'push_' .. kind, '{"state":"waiting"}')
    redis.call('ZADD', pushes, stamp(now_s()), kind .. ':' .. id)
    added = added + 1
  end
end
return added
